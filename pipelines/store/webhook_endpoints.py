"""Endpoints of webhooks and their secrets. How secrets are stored, and why: see `pipelines.store.webhook_tables`.

A deleted endpoint keeps its row, without secrets, until retention has deleted its log.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Row, text

from pipelines.jobs.ids import uuid7
from pipelines.jobs.webhooks import new_secret, secret_hint

_LIVE = "tenant_id = :tenant_id AND deleted_at IS NULL"
_SHOWN = f"""
SELECT e.*, (SELECT secret FROM webhook_secrets AS s WHERE s.endpoint_id = e.id AND s.expires_at IS NULL) AS secret
FROM webhook_endpoints AS e WHERE {_LIVE}
"""

_LOCK_TENANT = text("SELECT 1 FROM tenants WHERE id = :tenant_id FOR NO KEY UPDATE")
_COUNT = text(f"SELECT count(*) FROM webhook_endpoints WHERE {_LIVE}")
_INSERT = text("""
INSERT INTO webhook_endpoints (id, tenant_id, name, url, event_types)
VALUES (:id, :tenant_id, :name, :url, CAST(:event_types AS text[]))
""")
_GET = text(f"{_SHOWN} AND e.id = :id")
_LOCK = text(f"SELECT 1 FROM webhook_endpoints WHERE id = :id AND {_LIVE} FOR UPDATE")
_LIST = text(f"""
{_SHOWN} AND (CAST(:before AS uuid) IS NULL OR e.id < CAST(:before AS uuid))
ORDER BY e.id DESC LIMIT :limit
""")
_UPDATE = text(f"""
UPDATE webhook_endpoints SET updated_at = now(), name = coalesce(:name, name), url = coalesce(:url, url),
    event_types = coalesce(CAST(:event_types AS text[]), event_types)
WHERE id = :id AND {_LIVE}
""")
_ENABLE = text(f"""
UPDATE webhook_endpoints SET disabled_at = NULL, disabled_reason = NULL, updated_at = now()
WHERE id = :id AND {_LIVE} AND disabled_at IS NOT NULL
""")
_DISABLE = text(f"""
UPDATE webhook_endpoints SET disabled_at = now(), disabled_reason = :reason, updated_at = now()
WHERE id = :id AND {_LIVE} AND disabled_at IS NULL
""")
_DELETE = text(f"UPDATE webhook_endpoints SET deleted_at = now() WHERE id = :id AND {_LIVE}")
# What is being sent ends by itself; what waits would wait for ever.
_END_WAITING = text("""
UPDATE webhook_deliveries SET state = 'failed', finished_at = now(), last_error = :error
WHERE endpoint_id = :id AND state = 'pending'
""")

_INSERT_SECRET = text("INSERT INTO webhook_secrets (id, endpoint_id, secret) VALUES (:id, :endpoint_id, :secret)")
_RETIRE_SECRET = text("""
UPDATE webhook_secrets SET expires_at = now() + make_interval(secs => :grace)
WHERE endpoint_id = :endpoint_id AND expires_at IS NULL
""")
_TOUCH = text("UPDATE webhook_endpoints SET updated_at = now() WHERE id = :id")
_ACTIVE = text("SELECT count(*) FROM webhook_secrets WHERE endpoint_id = :endpoint_id AND expires_at > now()")
_FORGET_SECRETS = text("DELETE FROM webhook_secrets WHERE endpoint_id = :endpoint_id")


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """An endpoint, without anything secret."""

    endpoint_id: uuid.UUID
    tenant_id: uuid.UUID
    name: str
    url: str
    event_types: tuple[str, ...]
    secret_hint: str
    created_at: datetime
    updated_at: datetime
    disabled_at: datetime | None
    disabled_reason: str | None


@dataclass(frozen=True, kw_only=True)
class WithSecret:
    """An endpoint and its new secret, shown this once."""

    endpoint: Endpoint
    secret: str


def count_locked(conn: Connection, tenant_id: uuid.UUID) -> int:
    """How many endpoints the tenant has; no other transaction adds one until this one ends."""
    conn.execute(_LOCK_TENANT, {"tenant_id": tenant_id})
    return int(conn.execute(_COUNT, {"tenant_id": tenant_id}).scalar_one())


def insert(conn: Connection, tenant_id: uuid.UUID, *, name: str, url: str, event_types: Sequence[str]) -> WithSecret:
    """A new endpoint with its first secret."""
    endpoint_id = uuid7()
    values = {"id": endpoint_id, "tenant_id": tenant_id, "name": name, "url": url, "event_types": list(event_types)}
    conn.execute(_INSERT, values)
    secret = _add_secret(conn, endpoint_id)
    return WithSecret(endpoint=_read(conn, tenant_id, endpoint_id), secret=secret)


def get(conn: Connection, tenant_id: uuid.UUID, endpoint_id: uuid.UUID) -> Endpoint | None:
    """The tenant's endpoint."""
    row = conn.execute(_GET, {"id": endpoint_id, "tenant_id": tenant_id}).one_or_none()
    return None if row is None else _endpoint(row)


def list_endpoints(
    conn: Connection, tenant_id: uuid.UUID, *, limit: int, before: uuid.UUID | None = None
) -> tuple[Endpoint, ...]:
    """The tenant's endpoints, newest first."""
    rows = conn.execute(_LIST, {"tenant_id": tenant_id, "limit": limit, "before": before})
    return tuple(_endpoint(row) for row in rows)


def update(
    conn: Connection,
    tenant_id: uuid.UUID,
    endpoint_id: uuid.UUID,
    *,
    name: str | None = None,
    url: str | None = None,
    event_types: Sequence[str] | None = None,
) -> bool:
    """Change what is given; False where the tenant has no such endpoint."""
    values = {
        "id": endpoint_id,
        "tenant_id": tenant_id,
        "name": name,
        "url": url,
        "event_types": None if event_types is None else list(event_types),
    }
    return conn.execute(_UPDATE, values).rowcount == 1


def enable(conn: Connection, tenant_id: uuid.UUID, endpoint_id: uuid.UUID) -> None:
    """Send to it again, from the next event on."""
    conn.execute(_ENABLE, {"id": endpoint_id, "tenant_id": tenant_id})


def disable(conn: Connection, tenant_id: uuid.UUID, endpoint_id: uuid.UUID, *, reason: str) -> bool:
    """Send nothing more to it; what waits fails (and can be replayed). True where this changed it."""
    changed = conn.execute(_DISABLE, {"id": endpoint_id, "tenant_id": tenant_id, "reason": reason}).rowcount == 1
    if changed:
        conn.execute(_END_WAITING, {"id": endpoint_id, "error": f"the endpoint was disabled: {reason}"})
    return changed


def delete(conn: Connection, tenant_id: uuid.UUID, endpoint_id: uuid.UUID) -> bool:
    """Forget it and its secrets; False where the tenant has no such endpoint."""
    if conn.execute(_DELETE, {"id": endpoint_id, "tenant_id": tenant_id}).rowcount == 0:
        return False
    conn.execute(_FORGET_SECRETS, {"endpoint_id": endpoint_id})
    conn.execute(_END_WAITING, {"id": endpoint_id, "error": "the endpoint was deleted"})
    return True


def retiring_secrets(conn: Connection, tenant_id: uuid.UUID, endpoint_id: uuid.UUID) -> int | None:
    """How many old secrets still sign; None where the tenant has no such endpoint, which is locked otherwise."""
    if conn.execute(_LOCK, {"id": endpoint_id, "tenant_id": tenant_id}).one_or_none() is None:
        return None
    return int(conn.execute(_ACTIVE, {"endpoint_id": endpoint_id}).scalar_one())


def rotate(conn: Connection, tenant_id: uuid.UUID, endpoint_id: uuid.UUID, *, grace: float) -> WithSecret:
    """A new secret; the present one signs beside it for `grace` seconds more. After `retiring_secrets`."""
    conn.execute(_RETIRE_SECRET, {"endpoint_id": endpoint_id, "grace": grace})
    secret = _add_secret(conn, endpoint_id)
    conn.execute(_TOUCH, {"id": endpoint_id})
    return WithSecret(endpoint=_read(conn, tenant_id, endpoint_id), secret=secret)


def _add_secret(conn: Connection, endpoint_id: uuid.UUID) -> str:
    secret = new_secret()
    conn.execute(_INSERT_SECRET, {"id": uuid7(), "endpoint_id": endpoint_id, "secret": secret})
    return secret


def _read(conn: Connection, tenant_id: uuid.UUID, endpoint_id: uuid.UUID) -> Endpoint:
    return _endpoint(conn.execute(_GET, {"id": endpoint_id, "tenant_id": tenant_id}).one())


def _endpoint(row: Row[tuple[object, ...]]) -> Endpoint:
    return Endpoint(
        endpoint_id=row.id,
        tenant_id=row.tenant_id,
        name=row.name,
        url=row.url,
        event_types=tuple(row.event_types),
        secret_hint=secret_hint(row.secret),
        created_at=row.created_at,
        updated_at=row.updated_at,
        disabled_at=row.disabled_at,
        disabled_reason=row.disabled_reason,
    )
