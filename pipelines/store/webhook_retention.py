"""Old events go, with their deliveries and attempts; then secrets that have expired and endpoints without a log."""

from __future__ import annotations

from sqlalchemy import Connection, text

_EVENTS = text("""
WITH old AS (
    SELECT id FROM webhook_events WHERE created_at < now() - make_interval(secs => :age)
    ORDER BY created_at LIMIT :limit FOR UPDATE SKIP LOCKED
),
gone AS (DELETE FROM webhook_deliveries AS d USING old WHERE d.event_id = old.id RETURNING d.id),
attempts AS (DELETE FROM webhook_attempts AS a USING gone WHERE a.delivery_id = gone.id)
DELETE FROM webhook_events USING old WHERE webhook_events.id = old.id
""")
_SECRETS = text("DELETE FROM webhook_secrets WHERE expires_at < now()")
_ENDPOINTS = text("""
DELETE FROM webhook_endpoints AS e WHERE e.deleted_at IS NOT NULL
  AND NOT EXISTS (SELECT 1 FROM webhook_deliveries AS d WHERE d.endpoint_id = e.id)
""")


def expire_events(conn: Connection, *, older_than: float, limit: int = 1000) -> int:
    """Delete events older than so many seconds and their log, at most `limit`; how many."""
    return conn.execute(_EVENTS, {"age": older_than, "limit": limit}).rowcount


def forget_endpoints(conn: Connection) -> int:
    """Delete expired secrets, and deleted endpoints whose log is gone; how many endpoints."""
    conn.execute(_SECRETS)
    return conn.execute(_ENDPOINTS).rowcount
