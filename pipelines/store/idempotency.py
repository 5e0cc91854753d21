"""Idempotency keys: the same request twice is one request.

`begin`, the work and `finish` belong into one transaction: the key then stands exactly when the work does, and a server
that dies in between leaves nothing behind. A second request under the same key, while the first one runs, is refused
by an advisory lock rather than made to wait.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from pipelines.jobs.errors import IdempotencyInFlight, IdempotencyMismatch
from pipelines.store.values import to_json

# Held until the transaction ends. A collision of two keys' hashes costs a needless 409, and the client repeats.
_LOCK = text("SELECT pg_try_advisory_xact_lock(hashtextextended(:tenant || ' ' || :key, 0))")
_FIND = text("""
SELECT fingerprint, status, response, created_at < now() - interval '1 minute' AS abandoned FROM idempotency_keys
WHERE tenant_id = :tenant_id AND key = :key AND expires_at > now()
""")
_BEGIN = text("""
INSERT INTO idempotency_keys (tenant_id, key, fingerprint, expires_at)
VALUES (:tenant_id, :key, :fingerprint, now() + make_interval(secs => :keep))
ON CONFLICT (tenant_id, key) DO UPDATE SET fingerprint = excluded.fingerprint, status = NULL, response = NULL,
    created_at = now(), expires_at = excluded.expires_at
""")
_FINISH = text("""
UPDATE idempotency_keys SET status = :status, response = CAST(:response AS jsonb)
WHERE tenant_id = :tenant_id AND key = :key
""")
_EXPIRE = text("""
DELETE FROM idempotency_keys WHERE (tenant_id, key) IN (
    SELECT tenant_id, key FROM idempotency_keys WHERE expires_at <= now() LIMIT :limit FOR UPDATE SKIP LOCKED
)
""")


@dataclass(frozen=True, kw_only=True)
class Replay:
    """The answer that was given before: HTTP status and JSON body."""

    status: int
    response: Mapping[str, Any]


def begin(conn: Connection, tenant_id: uuid.UUID, key: str, *, fingerprint: bytes, keep: float) -> Replay | None:
    """Claim the key for this transaction and for `keep` seconds after it; the stored answer if there is one already.

    `fingerprint`: SHA-256 of what was asked. Raises `IdempotencyInFlight`, `IdempotencyMismatch`.
    """
    if not conn.execute(_LOCK, {"tenant": str(tenant_id), "key": key}).scalar_one():
        raise IdempotencyInFlight("a request with this idempotency key is being handled; repeat it in a moment")
    found = conn.execute(_FIND, {"tenant_id": tenant_id, "key": key}).one_or_none()
    if found is not None:
        if bytes(found.fingerprint) != fingerprint:
            raise IdempotencyMismatch("this idempotency key was used with another request; use a new key")
        if found.status is not None:
            return Replay(status=found.status, response=found.response)
        if not found.abandoned:
            raise IdempotencyInFlight("a request with this idempotency key is being handled; repeat it in a moment")
    conn.execute(_BEGIN, {"tenant_id": tenant_id, "key": key, "fingerprint": fingerprint, "keep": keep})
    return None


def finish(conn: Connection, tenant_id: uuid.UUID, key: str, *, status: int, response: Mapping[str, Any]) -> None:
    """Store the answer under the key."""
    values = {"tenant_id": tenant_id, "key": key, "status": status, "response": to_json(response)}
    conn.execute(_FINISH, values)


def expire(conn: Connection, *, limit: int = 1000) -> int:
    """Forget keys whose time is over, at most `limit`; how many."""
    return conn.execute(_EXPIRE, {"limit": limit}).rowcount
