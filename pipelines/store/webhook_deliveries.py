"""Deliveries: claimed under a lease, recorded under its fence, listed with their attempts, replayed as new ones.

An attempt is written down when it is claimed and completed when it is recorded. A sender that dies in between leaves
an attempt without an end; its lease runs out and the delivery is sent again with the same `webhook-id`: at least once.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Row, text

from pipelines.jobs.webhooks import show_event
from pipelines.store import webhook_events
from pipelines.store.values import clean_text

STATES = ("pending", "sending", "succeeded", "failed")

# Few of an endpoint and of a tenant at once: a receiver that answers slowly holds up its own deliveries alone.
_CLAIM = text("""
WITH busy AS (
    SELECT endpoint_id, tenant_id, count(*) AS n FROM webhook_deliveries
    WHERE state = 'sending' AND lease_until >= now() GROUP BY endpoint_id, tenant_id
),
room AS (
    SELECT e.id, e.tenant_id, greatest(0, :per_endpoint - coalesce(busy.n, 0)) AS free
    FROM webhook_endpoints AS e LEFT JOIN busy ON busy.endpoint_id = e.id
    WHERE e.disabled_at IS NULL AND e.deleted_at IS NULL
),
due AS (
    SELECT found.id, room.tenant_id, row_number() OVER (PARTITION BY room.tenant_id ORDER BY found.next_at) AS place
    FROM room CROSS JOIN LATERAL (
        (SELECT d.id, d.next_at FROM webhook_deliveries AS d
         WHERE d.endpoint_id = room.id AND d.state = 'pending' AND d.next_at <= now()
         ORDER BY d.next_at LIMIT room.free)
        UNION ALL
        (SELECT d.id, d.next_at FROM webhook_deliveries AS d
         WHERE d.endpoint_id = room.id AND d.state = 'sending' AND d.lease_until < now()
         LIMIT room.free)
    ) AS found
),
chosen AS (
    SELECT due.id FROM due
    WHERE due.place + (SELECT coalesce(sum(n), 0) FROM busy WHERE busy.tenant_id = due.tenant_id) <= :per_tenant
    ORDER BY due.place LIMIT :limit
),
locked AS (
    SELECT d.id FROM webhook_deliveries AS d WHERE d.id IN (SELECT id FROM chosen)
      AND (d.state = 'pending' OR d.state = 'sending' AND d.lease_until < now())
    FOR UPDATE SKIP LOCKED
),
claimed AS (
    UPDATE webhook_deliveries AS d SET state = 'sending', attempt = d.attempt + 1,
        lease_until = now() + make_interval(secs => :lease)
    FROM locked WHERE d.id = locked.id
    RETURNING d.*
),
logged AS (
    INSERT INTO webhook_attempts (delivery_id, attempt) SELECT id, attempt FROM claimed
)
SELECT claimed.id, claimed.tenant_id, claimed.endpoint_id, claimed.attempt, claimed.once, e.url, v.id AS event_id,
    v.body, CAST(floor(extract(epoch FROM now())) AS bigint) AS sent_at,
    ARRAY(
        SELECT s.secret FROM webhook_secrets AS s
        WHERE s.endpoint_id = e.id AND (s.expires_at IS NULL OR s.expires_at > now()) ORDER BY s.id DESC
    ) AS secrets
FROM claimed JOIN webhook_endpoints AS e ON e.id = claimed.endpoint_id
    JOIN webhook_events AS v ON v.id = claimed.event_id
""")

_RECORD = text("""
WITH ended AS (
    UPDATE webhook_attempts SET ended_at = now(), status = :status, error = :error, answer = :answer
    WHERE delivery_id = :id AND attempt = :attempt
)
UPDATE webhook_deliveries SET state = :state, lease_until = NULL, last_status = :status, last_error = :error,
    next_at = CASE WHEN :state = 'pending' THEN now() + make_interval(secs => :pause) ELSE next_at END,
    finished_at = CASE WHEN :state = 'pending' THEN NULL ELSE now() END
WHERE id = :id AND state = 'sending' AND attempt = :attempt
""")

_DUE = text("""
SELECT count(*) FROM (
    SELECT 1 FROM webhook_endpoints AS e
        JOIN webhook_deliveries AS d ON d.endpoint_id = e.id AND d.state = 'pending' AND d.next_at <= now()
    WHERE e.disabled_at IS NULL AND e.deleted_at IS NULL LIMIT :most
) AS due
""")

_SHOWN = """
SELECT d.id, d.endpoint_id, d.event_id, v.type, v.job_id, d.state, d.attempt, d.next_at, d.last_status, d.last_error,
    d.created_at, d.finished_at
FROM webhook_deliveries AS d JOIN webhook_events AS v ON v.id = d.event_id
WHERE d.endpoint_id = :endpoint_id AND d.tenant_id = :tenant_id
"""
_GET = text(f"{_SHOWN} AND d.id = :id")
_LIST = text(f"""
{_SHOWN} AND (CAST(:before AS uuid) IS NULL OR d.id < CAST(:before AS uuid))
  AND (CAST(:state AS text) IS NULL OR d.state = CAST(:state AS text))
ORDER BY d.id DESC LIMIT :limit
""")
_ATTEMPTS = text("""
SELECT delivery_id, attempt, started_at, ended_at, status, error, answer FROM webhook_attempts
WHERE delivery_id = ANY(CAST(:ids AS uuid[])) ORDER BY delivery_id, attempt
""")

# Failed ones whose event is not on its way to the endpoint again, and has not got there since.
_FAILED_SINCE = text("""
SELECT DISTINCT ON (d.event_id) d.event_id, d.id FROM webhook_deliveries AS d
WHERE d.endpoint_id = :endpoint_id AND d.tenant_id = :tenant_id AND d.state = 'failed' AND NOT d.once
  AND d.created_at >= :since
  AND NOT EXISTS (
      SELECT 1 FROM webhook_deliveries AS later
      WHERE later.event_id = d.event_id AND later.endpoint_id = d.endpoint_id AND later.state <> 'failed'
  )
ORDER BY d.event_id LIMIT :limit
""")


@dataclass(frozen=True, kw_only=True)
class Claimed:
    """A delivery to be sent now. `attempt` is the fencing token; `sent_at`: PostgreSQL's clock, unix seconds."""

    delivery_id: uuid.UUID
    tenant_id: uuid.UUID
    endpoint_id: uuid.UUID
    attempt: int
    once: bool
    url: str
    webhook_id: str
    body: str
    sent_at: int
    secrets: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One time that it was sent. Without an end: it is being sent, or its sender died."""

    attempt: int
    started_at: datetime
    ended_at: datetime | None
    status: int | None
    error: str | None
    answer: str | None


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """What became of an event at an endpoint."""

    delivery_id: uuid.UUID
    endpoint_id: uuid.UUID
    event_id: uuid.UUID
    event: str
    job_id: uuid.UUID | None
    state: str
    next_at: datetime
    last_status: int | None
    last_error: str | None
    created_at: datetime
    finished_at: datetime | None
    attempts: tuple[Attempt, ...]


def claim(conn: Connection, *, limit: int, per_endpoint: int, per_tenant: int, lease: float) -> tuple[Claimed, ...]:
    """Lease up to `limit` deliveries that are due, or whose sender died."""
    values = {"limit": limit, "per_endpoint": per_endpoint, "per_tenant": per_tenant, "lease": lease}
    return tuple(
        Claimed(
            delivery_id=row.id,
            tenant_id=row.tenant_id,
            endpoint_id=row.endpoint_id,
            attempt=row.attempt,
            once=row.once,
            url=row.url,
            webhook_id=show_event(row.event_id),
            body=row.body,
            sent_at=row.sent_at,
            secrets=tuple(row.secrets),
        )
        for row in conn.execute(_CLAIM, values)
    )


def record(
    conn: Connection,
    claimed: Claimed,
    *,
    state: str,
    status: int | None,
    error: str | None,
    answer: str,
    pause: float = 0.0,
) -> bool:
    """What came of it: `succeeded`, `failed`, or `pending` again after `pause` seconds. False: the lease was lost."""
    values = {
        "id": claimed.delivery_id,
        "attempt": claimed.attempt,
        "state": state,
        "status": status,
        "error": None if error is None else clean_text(error),
        "answer": clean_text(answer),
        "pause": pause,
    }
    return conn.execute(_RECORD, values).rowcount == 1


def backlog(conn: Connection, *, most: int = 10_000) -> int:
    """Deliveries that are due and not being sent, counted up to `most`."""
    return int(conn.execute(_DUE, {"most": most}).scalar_one())


def get(conn: Connection, tenant_id: uuid.UUID, endpoint_id: uuid.UUID, delivery_id: uuid.UUID) -> Delivery | None:
    """One delivery of the tenant's endpoint."""
    keys = {"tenant_id": tenant_id, "endpoint_id": endpoint_id, "id": delivery_id}
    row = conn.execute(_GET, keys).one_or_none()
    return None if row is None else _with_attempts(conn, [row])[0]


def list_deliveries(
    conn: Connection,
    tenant_id: uuid.UUID,
    endpoint_id: uuid.UUID,
    *,
    limit: int,
    state: str | None = None,
    before: uuid.UUID | None = None,
) -> tuple[Delivery, ...]:
    """The endpoint's deliveries, newest first."""
    values = {
        "tenant_id": tenant_id,
        "endpoint_id": endpoint_id,
        "limit": limit,
        "state": state,
        "before": before,
    }
    return _with_attempts(conn, conn.execute(_LIST, values).all())


def replay_failed(
    conn: Connection, tenant_id: uuid.UUID, endpoint_id: uuid.UUID, *, since: datetime, limit: int
) -> int:
    """Send again what failed since then and has not arrived meanwhile, at most `limit`; how many. Repeatable."""
    values = {"tenant_id": tenant_id, "endpoint_id": endpoint_id, "since": since, "limit": limit}
    found = conn.execute(_FAILED_SINCE, values).all()
    for row in found:
        webhook_events.deliver(conn, tenant_id, endpoint_id, row.event_id)
    return len(found)


def _with_attempts(conn: Connection, rows: Sequence[Row[tuple[object, ...]]]) -> tuple[Delivery, ...]:
    attempts: dict[uuid.UUID, list[Attempt]] = {row.id: [] for row in rows}
    for found in conn.execute(_ATTEMPTS, {"ids": list(attempts)}):
        attempts[found.delivery_id].append(
            Attempt(
                attempt=found.attempt,
                started_at=found.started_at,
                ended_at=found.ended_at,
                status=found.status,
                error=found.error,
                answer=found.answer,
            )
        )
    return tuple(
        Delivery(
            delivery_id=row.id,
            endpoint_id=row.endpoint_id,
            event_id=row.event_id,
            event=row.type,
            job_id=row.job_id,
            state=row.state,
            next_at=row.next_at,
            last_status=row.last_status,
            last_error=row.last_error,
            created_at=row.created_at,
            finished_at=row.finished_at,
            attempts=tuple(attempts[row.id]),
        )
        for row in rows
    )
