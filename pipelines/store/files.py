"""Uploaded files of a tenant: rows here, bytes in the blob store under a key that names tenant and content."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Row, text

_COLUMNS = "id, tenant_id, filename, purpose, blob_key, size, sha256, media_type, status, created_at, expires_at"

_INSERT = text(f"""
INSERT INTO files (id, tenant_id, filename, purpose, blob_key, size, sha256, media_type, status, expires_at)
VALUES (:id, :tenant_id, :filename, :purpose, :blob_key, :size, :sha256, :media_type, :status, :expires_at)
RETURNING {_COLUMNS}
""")

_STORED = text("UPDATE tenants SET stored_bytes = stored_bytes + :size WHERE id = :tenant_id")

_LIVE = "(expires_at IS NULL OR expires_at > now())"

_GET = text(f"SELECT {_COLUMNS} FROM files WHERE id = :id AND tenant_id = :tenant_id AND {_LIVE}")

_EXISTING = text(f"""
SELECT id FROM files WHERE tenant_id = :tenant_id AND id = ANY(CAST(:ids AS uuid[])) AND {_LIVE}
""")

_FIND = text(f"""
SELECT {_COLUMNS} FROM files
WHERE tenant_id = :tenant_id AND sha256 = :sha256 AND status <> 'pending' AND {_LIVE}
ORDER BY id LIMIT 1
""")

_LIST = text(f"""
SELECT {_COLUMNS} FROM files
WHERE tenant_id = :tenant_id AND {_LIVE}
  AND (CAST(:purpose AS text) IS NULL OR purpose = CAST(:purpose AS text))
  AND (CAST(:after AS uuid) IS NULL OR (:descending AND id < CAST(:after AS uuid))
       OR (NOT :descending AND id > CAST(:after AS uuid)))
ORDER BY CASE WHEN :descending THEN id END DESC, CASE WHEN NOT :descending THEN id END
LIMIT :limit
""")

_COMPLETE = text(f"""
UPDATE files SET size = :size, sha256 = :sha256, media_type = :media_type, status = 'uploaded'
WHERE id = :id AND tenant_id = :tenant_id AND status = 'pending'
RETURNING {_COLUMNS}
""")

_DELETE = text(f"DELETE FROM files WHERE id = :id AND tenant_id = :tenant_id RETURNING {_COLUMNS}")

_EXPIRE = text("""
WITH gone AS (
    SELECT id FROM files WHERE expires_at <= now() ORDER BY expires_at LIMIT :limit FOR UPDATE SKIP LOCKED
)
DELETE FROM files USING gone WHERE files.id = gone.id RETURNING files.*
""")

_STILL_USED = text("SELECT blob_key FROM files WHERE blob_key = ANY(CAST(:keys AS text[]))")


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """An uploaded file. Several files of a tenant may share one blob: equal content is stored once."""

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
    """Record a file and count its bytes for the tenant."""
    values = {
        "id": new.file_id,
        "tenant_id": new.tenant_id,
        "filename": new.filename,
        "purpose": new.purpose,
        "blob_key": new.blob_key,
        "size": new.size,
        "sha256": new.sha256,
        "media_type": new.media_type,
        "status": new.status,
        "expires_at": new.expires_at,
    }
    row = conn.execute(_INSERT, values).one()
    conn.execute(_STORED, {"tenant_id": new.tenant_id, "size": new.size})
    return _file(row)


def get(conn: Connection, tenant_id: uuid.UUID, file_id: uuid.UUID) -> StoredFile | None:
    """The tenant's file; None where there is none of this id, or it has expired."""
    row = conn.execute(_GET, {"id": file_id, "tenant_id": tenant_id}).one_or_none()
    return None if row is None else _file(row)


def existing(conn: Connection, tenant_id: uuid.UUID, file_ids: Sequence[uuid.UUID]) -> frozenset[uuid.UUID]:
    """Those of the ids that are files of the tenant."""
    return frozenset(conn.execute(_EXISTING, {"tenant_id": tenant_id, "ids": list(file_ids)}).scalars())


def find_content(conn: Connection, tenant_id: uuid.UUID, sha256: str) -> StoredFile | None:
    """A file of the tenant with this content (hex), the oldest."""
    row = conn.execute(_FIND, {"tenant_id": tenant_id, "sha256": sha256}).one_or_none()
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
    values = {"tenant_id": tenant_id, "limit": limit, "after": after, "purpose": purpose, "descending": descending}
    return tuple(_file(row) for row in conn.execute(_LIST, values))


def complete(
    conn: Connection, tenant_id: uuid.UUID, file_id: uuid.UUID, *, size: int, sha256: str, media_type: str
) -> StoredFile | None:
    """A presigned upload has arrived; None where nothing was pending under this id."""
    values = {"id": file_id, "tenant_id": tenant_id, "size": size, "sha256": sha256, "media_type": media_type}
    row = conn.execute(_COMPLETE, values).one_or_none()
    if row is None:
        return None
    conn.execute(_STORED, {"tenant_id": tenant_id, "size": size})
    return _file(row)


def delete(conn: Connection, tenant_id: uuid.UUID, file_id: uuid.UUID) -> StoredFile | None:
    """Remove the tenant's file; None where there is none. Its blob may go once `unused` says so."""
    row = conn.execute(_DELETE, {"id": file_id, "tenant_id": tenant_id}).one_or_none()
    if row is None:
        return None
    removed = _file(row)
    conn.execute(_STORED, {"tenant_id": tenant_id, "size": -removed.size})
    return removed


def expire(conn: Connection, *, limit: int) -> tuple[StoredFile, ...]:
    """Remove files whose time is up, at most `limit`."""
    gone = tuple(_file(row) for row in conn.execute(_EXPIRE, {"limit": limit}))
    for file in gone:
        conn.execute(_STORED, {"tenant_id": file.tenant_id, "size": -file.size})
    return gone


def unused(conn: Connection, blob_keys: Sequence[str]) -> tuple[str, ...]:
    """Those of the keys that no file names any more."""
    used = set(conn.execute(_STILL_USED, {"keys": list(blob_keys)}).scalars())
    return tuple(key for key in blob_keys if key not in used)


def _file(row: Row[tuple[object, ...]]) -> StoredFile:
    return StoredFile(
        file_id=row.id,
        tenant_id=row.tenant_id,
        filename=row.filename,
        purpose=row.purpose,
        blob_key=row.blob_key,
        size=row.size,
        sha256=row.sha256,
        media_type=row.media_type,
        status=row.status,
        created_at=row.created_at,
        expires_at=row.expires_at,
    )
