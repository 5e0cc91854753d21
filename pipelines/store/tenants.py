"""Tenants and their API keys.

A key is `bs_<prefix>_<secret>`: the prefix is public and finds the row, the secret holds 256 random bits. Stored are
the prefix and HMAC-SHA256 of the whole key under the server's pepper, so a copy of the database opens nothing. Several
keys of a tenant may be active at once: rotation is a new key, then the revocation of the old one.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Row, text
from sqlalchemy.exc import IntegrityError

from pipelines.jobs.errors import Conflict, NotFound, Unauthenticated
from pipelines.jobs.ids import uuid7

_PREFIX_BYTES = 6
_SECRET_BYTES = 32

_INSERT_TENANT = text("""
INSERT INTO tenants (id, name, weight, allowed_buckets, export_buckets, max_active_items, max_stored_bytes,
    requests_per_minute)
VALUES (:id, :name, :weight, CAST(:allowed_buckets AS text[]), CAST(:export_buckets AS text[]),
        coalesce(:max_active_items, 2000000),
        coalesce(:max_stored_bytes, 1099511627776), :requests_per_minute)
RETURNING *
""")
_GET_TENANT = text("SELECT * FROM tenants WHERE id = :id")
_FIND_TENANT = text("SELECT * FROM tenants WHERE name = :name")
_LIST_TENANTS = text("SELECT * FROM tenants ORDER BY id")
_DISABLE_TENANT = text(
    "UPDATE tenants SET disabled_at = CASE WHEN :disabled THEN coalesce(disabled_at, now()) END WHERE id = :id"
)

# What a tenant has waiting or running, from the snapshots: no item is counted.
_ACTIVE_ITEMS = text("""
SELECT coalesce(sum(greatest(0, j.item_count
    - coalesce(CAST(p.counts->>'succeeded' AS bigint), 0)
    - coalesce(CAST(p.counts->>'failed' AS bigint), 0)
    - coalesce(CAST(p.counts->>'cancelled' AS bigint), 0))), 0)
FROM jobs AS j JOIN job_progress AS p ON p.job_id = j.id
WHERE j.tenant_id = :tenant_id AND j.state IN ('queued', 'planning', 'running')
""")

_INSERT_KEY = text("""
INSERT INTO api_keys (id, tenant_id, name, prefix, digest, scopes, expires_at)
VALUES (:id, :tenant_id, :name, :prefix, :digest, CAST(:scopes AS text[]), :expires_at)
""")
_LIST_KEYS = text("SELECT * FROM api_keys WHERE tenant_id = :tenant_id ORDER BY id")
_REVOKE_KEY = text("""
UPDATE api_keys SET revoked_at = now() WHERE id = :id AND tenant_id = :tenant_id AND revoked_at IS NULL
""")
_FIND_KEY = text("""
SELECT k.id AS key_id, k.digest, k.scopes, t.*,
       k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now()) AND t.disabled_at IS NULL AS usable
FROM api_keys AS k JOIN tenants AS t ON t.id = k.tenant_id
WHERE k.prefix = :prefix
""")


@dataclass(frozen=True, kw_only=True)
class Tenant:
    """One tenant. `weight`: its share against others.

    `allowed_buckets`: what it may read; `export_buckets`: where it may write; None: the installation's own list.
    """

    tenant_id: uuid.UUID
    name: str
    weight: float
    allowed_buckets: tuple[str, ...] | None
    export_buckets: tuple[str, ...] | None
    max_active_items: int
    max_stored_bytes: int
    stored_bytes: int
    requests_per_minute: int | None
    created_at: datetime
    disabled_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class NewKey:
    """A key just made. `secret` is the whole key, shown this once."""

    key_id: uuid.UUID
    prefix: str
    secret: str


@dataclass(frozen=True, kw_only=True)
class Key:
    """A stored key, without anything secret."""

    key_id: uuid.UUID
    name: str
    prefix: str
    scopes: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Who is asking: the tenant behind a valid key, and what the key may do."""

    tenant: Tenant
    key_id: uuid.UUID
    scopes: frozenset[str]

    @property
    def tenant_id(self) -> uuid.UUID:
        """The tenant's id: part of every query made for this caller."""
        return self.tenant.tenant_id


def create_tenant(
    conn: Connection,
    name: str,
    *,
    weight: float = 1.0,
    allowed_buckets: Sequence[str] | None = None,
    export_buckets: Sequence[str] | None = None,
    max_active_items: int | None = None,
    max_stored_bytes: int | None = None,
    requests_per_minute: int | None = None,
) -> Tenant:
    """Make a tenant. Raises `Conflict` where the name is taken; the transaction is then lost."""
    values = {
        "id": uuid7(),
        "name": name,
        "weight": weight,
        "allowed_buckets": None if allowed_buckets is None else list(allowed_buckets),
        "export_buckets": None if export_buckets is None else list(export_buckets),
        "max_active_items": max_active_items,
        "max_stored_bytes": max_stored_bytes,
        "requests_per_minute": requests_per_minute,
    }
    try:
        return _tenant(conn.execute(_INSERT_TENANT, values).one())
    except IntegrityError as error:
        raise Conflict(f"a tenant named {name!r} exists already, or its weight is not above zero") from error


def get_tenant(conn: Connection, tenant_id: uuid.UUID) -> Tenant | None:
    """One tenant by id."""
    row = conn.execute(_GET_TENANT, {"id": tenant_id}).one_or_none()
    return None if row is None else _tenant(row)


def find_tenant(conn: Connection, name: str) -> Tenant | None:
    """One tenant by name."""
    row = conn.execute(_FIND_TENANT, {"name": name}).one_or_none()
    return None if row is None else _tenant(row)


def list_tenants(conn: Connection) -> tuple[Tenant, ...]:
    """All tenants, oldest first."""
    return tuple(_tenant(row) for row in conn.execute(_LIST_TENANTS))


def set_disabled(conn: Connection, tenant_id: uuid.UUID, *, disabled: bool) -> None:
    """Switch a tenant's keys off (or on again). Its jobs go on. Raises `NotFound`."""
    if conn.execute(_DISABLE_TENANT, {"id": tenant_id, "disabled": disabled}).rowcount == 0:
        raise NotFound("no tenant has this id")


def active_items(conn: Connection, tenant_id: uuid.UUID) -> int:
    """Items of the tenant that have not ended, as of the last snapshots: what `max_active_items` bounds."""
    return int(conn.execute(_ACTIVE_ITEMS, {"tenant_id": tenant_id}).scalar_one())


def create_key(
    conn: Connection,
    tenant_id: uuid.UUID,
    *,
    name: str,
    scopes: Sequence[str],
    expires_at: datetime | None = None,
    pepper: str,
) -> NewKey:
    """Make a key for the tenant. Raises `NotFound` where there is no such tenant."""
    if get_tenant(conn, tenant_id) is None:
        raise NotFound("no tenant has this id")
    prefix = secrets.token_hex(_PREFIX_BYTES)
    secret = f"bs_{prefix}_{secrets.token_urlsafe(_SECRET_BYTES)}"
    key_id = uuid7()
    values = {
        "id": key_id,
        "tenant_id": tenant_id,
        "name": name,
        "prefix": prefix,
        "digest": _digest(secret, pepper),
        "scopes": list(scopes),
        "expires_at": expires_at,
    }
    conn.execute(_INSERT_KEY, values)
    return NewKey(key_id=key_id, prefix=prefix, secret=secret)


def list_keys(conn: Connection, tenant_id: uuid.UUID) -> tuple[Key, ...]:
    """The tenant's keys, revoked ones too, oldest first."""
    return tuple(
        Key(
            key_id=row.id,
            name=row.name,
            prefix=row.prefix,
            scopes=tuple(row.scopes),
            created_at=row.created_at,
            expires_at=row.expires_at,
            revoked_at=row.revoked_at,
        )
        for row in conn.execute(_LIST_KEYS, {"tenant_id": tenant_id})
    )


def revoke_key(conn: Connection, tenant_id: uuid.UUID, key_id: uuid.UUID) -> bool:
    """Revoke a key of the tenant at once; False where it has no such active key."""
    return conn.execute(_REVOKE_KEY, {"id": key_id, "tenant_id": tenant_id}).rowcount == 1


def authenticate(conn: Connection, presented: str, *, pepper: str) -> Principal:
    """The caller behind `presented`. Raises `Unauthenticated`, with one message for every reason."""
    parts = presented.split("_", 2)
    prefix = parts[1] if len(parts) == 3 and parts[0] == "bs" else ""
    row = conn.execute(_FIND_KEY, {"prefix": prefix}).one_or_none() if prefix.isascii() and prefix.isalnum() else None
    digest = _digest(presented, pepper)
    # The comparison runs for an unknown prefix too, and looks at every byte.
    matches = hmac.compare_digest(digest, bytes(row.digest) if row is not None else bytes(len(digest)))
    if row is None or not matches or not row.usable:
        raise Unauthenticated("the API key is missing, unknown, expired or revoked")
    return Principal(tenant=_tenant(row), key_id=row.key_id, scopes=frozenset(row.scopes))


def _digest(key: str, pepper: str) -> bytes:
    return hmac.new(pepper.encode(), key.encode("utf-8", "surrogatepass"), hashlib.sha256).digest()


def _tenant(row: Row[tuple[object, ...]]) -> Tenant:
    return Tenant(
        tenant_id=row.id,
        name=row.name,
        weight=row.weight,
        allowed_buckets=None if row.allowed_buckets is None else tuple(row.allowed_buckets),
        export_buckets=None if row.export_buckets is None else tuple(row.export_buckets),
        max_active_items=row.max_active_items,
        max_stored_bytes=row.max_stored_bytes,
        stored_bytes=row.stored_bytes,
        requests_per_minute=row.requests_per_minute,
        created_at=row.created_at,
        disabled_at=row.disabled_at,
    )
