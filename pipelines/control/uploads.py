"""Recording and forgetting uploaded files, so that equal content of a tenant is stored once and never lost.

Two files may share one blob. Who is about to share a blob, and who is about to delete one, takes the same advisory lock
first; then either the new file is seen by the deletion, or the deletion is seen by the new file.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace

from sqlalchemy import Connection, text

from pipelines.jobs.errors import NotFound, QuotaExceeded
from pipelines.store import files, tenants
from pipelines.store.files import NewFile, StoredFile

_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 7))")


def record(conn: Connection, new: NewFile) -> StoredFile:
    """Record a file whose blob is stored; it refers to an older blob where the tenant has one of equal content.

    The caller deletes the blob of `new` when the answer names another. Raises `QuotaExceeded`.
    """
    tenant = tenants.get_tenant(conn, new.tenant_id)
    if tenant is None:
        raise NotFound("no tenant has this id")
    if tenant.stored_bytes + new.size > tenant.max_stored_bytes:
        raise QuotaExceeded(
            f"{tenant.stored_bytes} of {tenant.max_stored_bytes} bytes are stored already; delete files to make room"
        )
    if new.status == "pending":
        return files.insert(conn, new)
    older = files.find_content(conn, new.tenant_id, new.sha256)
    if older is not None:
        lock(conn, older.blob_key)
        again = files.find_content(conn, new.tenant_id, new.sha256)
        if again is not None and again.blob_key == older.blob_key:
            return files.insert(conn, replace(new, blob_key=older.blob_key))
    return files.insert(conn, new)


def forget(conn: Connection, tenant_id: uuid.UUID, file_id: uuid.UUID) -> StoredFile:
    """Remove the file. Call `sweep_blob` with its blob once this has committed. Raises `NotFound`."""
    removed = files.delete(conn, tenant_id, file_id)
    if removed is None:
        raise NotFound("there is no such file")
    return removed


def sweep_blob(conn: Connection, blob_key: str, delete: Callable[[str], None]) -> bool:
    """Delete the blob unless a file still names it; True where it was deleted."""
    lock(conn, blob_key)
    if not files.unused(conn, [blob_key]):
        return False
    delete(blob_key)
    return True


def lock(conn: Connection, blob_key: str) -> None:
    """Hold the blob for this transaction."""
    conn.execute(_LOCK, {"key": blob_key})
