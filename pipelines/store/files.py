"""Uploaded files: rows about blobs, deduplicated by content within a tenant.

Rows of one content may share a blob. Who reuses it locks a row of it (`find_content`), who deletes locks it too; the
blob is deleted inside the transaction that deletes its last row (`unused` says which that is). So nobody is left with
a row whose blob is gone.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Row, text

from pipelines.jobs.errors import QuotaExceeded
from pipelines.store.values import clean_text

_INSERT = text("""
INSERT INTO files (id, tenant_id, filename, purpose, blob_key, size, sha256, media_type, status, expires_at)
VALUES (:id, :tenant_id, :filename, :purpose, :blob_key, :size, :sha256, :media_type, :status, :expires_at)
RETURNING *
""")
_CHARGE = text("""
UPDATE tenants SET stored_bytes = stored_bytes + :size
WHERE id = :tenant_id AND (:size <= 0 OR stored_bytes + :size <= max_stored_bytes)
""")
_REFUND = text("UPDATE tenants SET stored_bytes = greatest(0, stored_bytes - :size) WHERE id = :tenant_id")

_LIVE = "tenant_id = :tenant_id AND (expires_at IS NULL OR expires_at > now())"
_GET = text(f"SELECT * FROM files WHERE id = :id AND {_LIVE}")
_EXISTING = text(f"SELECT id FROM files WHERE id = ANY(CAST(:ids AS uuid[])) AND {_LIVE} AND status <> 'pending'")
_FIND = text(f"""
SELECT * FROM files WHERE sha256 = :sha256 AND status <> 'pending' AND {_LIVE} ORDER BY id LIMIT 1 FOR UPDATE
""")
_LIST = f"""
SELECT * FROM files
WHERE {_LIVE} AND (CAST(:purpose AS text) IS NULL OR purpose = CAST(:purpose AS text))
  AND (CAST(:after AS uuid) IS NULL OR id {{beyond}} CAST(:after AS uuid))
ORDER BY id {{order}}
LIMIT :limit
"""
_LIST_DESCENDING = text(_LIST.format(beyond="<", order="DESC"))
_LIST_ASCENDING = text(_LIST.format(beyond=">", order="ASC"))

_PENDING = text(f"SELECT * FROM files WHERE id = :id AND {_LIVE} AND status = 'pending' FOR UPDATE")
_COMPLETE = text("""
UPDATE files SET status = 'uploaded', size = :size, sha256 = :sha256, media_type = :media_type,
    blob_key = coalesce(:blob_key, blob_key)
WHERE id = :id AND tenant_id = :tenant_id AND status = 'pending'
RETURNING *
""")
_MARK = text("UPDATE files SET status = :status WHERE id = :id AND tenant_id = :tenant_id")
_DELETE = text("DELETE FROM files WHERE id = :id AND tenant_id = :tenant_id RETURNING *")
_EXPIRE = text("""
WITH gone AS (
    SELECT id FROM files WHERE expires_at <= now() ORDER BY expires_at LIMIT :limit FOR UPDATE SKIP LOCKED
)
DELETE FROM files USING gone WHERE files.id = gone.id RETURNING files.*
""")
_STILL_USED = text("SELECT DISTINCT blob_key FROM files WHERE blob_key = ANY(CAST(:keys AS text[]))")


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """An uploaded file. `size` in bytes, `sha256` in hex. Several files of a tenant may share one blob."""

    file_id: uuid.UUID
    tenant_id: uuid.UUID
    filename: str
    purpose: str
    blob_key: str
    size: int
    sha256: str
    media_type: str
    status: str
    created_at: datetime
    expires_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class NewFile:
    """A file to be recorded. `status` is `pending` for a presigned upload that has not arrived yet."""

    file_id: uuid.UUID
    tenant_id: uuid.UUID
    filename: str
    purpose: str
    blob_key: str
    size: int
    sha256: str
    media_type: str
    status: str = "uploaded"
    expires_at: datetime | None = None


def insert(conn: Connection, new: NewFile) -> StoredFile:
    """Record a file and charge its bytes to the tenant. Raises `QuotaExceeded`."""
    _charge(conn, new.tenant_id, new.size)
    values = {
        "id": new.file_id,
        "tenant_id": new.tenant_id,
        "filename": clean_text(new.filename),
        "purpose": new.purpose,
        "blob_key": new.blob_key,
        "size": new.size,
        "sha256": new.sha256,
        "media_type": new.media_type,
        "status": new.status,
        "expires_at": new.expires_at,
    }
    return _file(conn.execute(_INSERT, values).one())


def get(conn: Connection, tenant_id: uuid.UUID, file_id: uuid.UUID) -> StoredFile | None:
    """The tenant's file; None where there is none of this id, or it has expired."""
    row = conn.execute(_GET, {"id": file_id, "tenant_id": tenant_id}).one_or_none()
    return None if row is None else _file(row)


def existing(conn: Connection, tenant_id: uuid.UUID, file_ids: Sequence[uuid.UUID]) -> frozenset[uuid.UUID]:
    """Those of `file_ids` that the tenant has, with their bytes."""
    return frozenset(conn.execute(_EXISTING, {"ids": list(file_ids), "tenant_id": tenant_id}).scalars())


def find_content(conn: Connection, tenant_id: uuid.UUID, sha256: str) -> StoredFile | None:
    """A file of the tenant with this content, locked: insert the row that shares its blob in the same transaction."""
    row = conn.execute(_FIND, {"sha256": sha256, "tenant_id": tenant_id}).one_or_none()
    return None if row is None else _file(row)


def list_files(
    conn: Connection,
    tenant_id: uuid.UUID,
    *,
    limit: int,
    after: uuid.UUID | None = None,
    purpose: str | None = None,
    descending: bool = True,
) -> tuple[StoredFile, ...]:
    """The tenant's files by age, at most `limit`; `after` is the last id of the page before."""
    values = {"tenant_id": tenant_id, "limit": limit, "after": after, "purpose": purpose}
    return tuple(_file(row) for row in conn.execute(_LIST_DESCENDING if descending else _LIST_ASCENDING, values))


def complete(
    conn: Connection,
    tenant_id: uuid.UUID,
    file_id: uuid.UUID,
    *,
    size: int,
    sha256: str,
    media_type: str,
    blob_key: str | None = None,
) -> StoredFile | None:
    """A presigned upload has arrived, and is this; None where nothing is pending under the id. `QuotaExceeded`.

    The tenant was charged what was announced; the difference is settled here. `blob_key`: where the content lies
    already, if not where it was announced.
    """
    pending = conn.execute(_PENDING, {"id": file_id, "tenant_id": tenant_id}).one_or_none()
    if pending is None:
        return None
    _charge(conn, tenant_id, size - pending.size)
    values = {
        "id": file_id,
        "tenant_id": tenant_id,
        "size": size,
        "sha256": sha256,
        "media_type": media_type,
        "blob_key": blob_key,
    }
    return _file(conn.execute(_COMPLETE, values).one())


def mark(conn: Connection, tenant_id: uuid.UUID, file_id: uuid.UUID, *, status: str) -> bool:
    """Set the file's status (`processed`, `error`); False where the tenant has no such file."""
    return conn.execute(_MARK, {"id": file_id, "tenant_id": tenant_id, "status": status}).rowcount == 1


def delete(conn: Connection, tenant_id: uuid.UUID, file_id: uuid.UUID) -> StoredFile | None:
    """Remove the tenant's file; None where there is none. Delete its blob, if `unused`, in the same transaction."""
    row = conn.execute(_DELETE, {"id": file_id, "tenant_id": tenant_id}).one_or_none()
    if row is None:
        return None
    conn.execute(_REFUND, {"tenant_id": tenant_id, "size": row.size})
    return _file(row)


def expire(conn: Connection, *, limit: int = 50) -> tuple[StoredFile, ...]:
    """Remove files whose time is over, at most `limit`. Delete their blobs, if `unused`, in the same transaction."""
    gone = tuple(_file(row) for row in conn.execute(_EXPIRE, {"limit": limit}))
    for tenant_id in sorted({file.tenant_id for file in gone}):
        size = sum(file.size for file in gone if file.tenant_id == tenant_id)
        conn.execute(_REFUND, {"tenant_id": tenant_id, "size": size})
    return gone


def unused(conn: Connection, blob_keys: Sequence[str]) -> tuple[str, ...]:
    """Those of the keys that no file names any more."""
    used = set(conn.execute(_STILL_USED, {"keys": list(blob_keys)}).scalars())
    return tuple(key for key in dict.fromkeys(blob_keys) if key not in used)


def _charge(conn: Connection, tenant_id: uuid.UUID, size: int) -> None:
    if conn.execute(_CHARGE, {"tenant_id": tenant_id, "size": size}).rowcount == 0:
        raise QuotaExceeded("the tenant's storage is full; delete files, or ask for a larger quota")


def _file(row: Row[tuple[object, ...]]) -> StoredFile:
    fields = dict(row._mapping)
    return StoredFile(file_id=fields.pop("id"), **fields)
