"""Media that came inside a request become files of the tenant's for a day: workers read files, not requests."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from pipelines.blobs.base import BlobStore
from pipelines.jobs.ids import uuid7
from pipelines.steps.conversation import InlineMedium
from pipelines.store import files
from pipelines.store.files import NewFile
from pipelines.store.session import Database

KEPT = timedelta(days=2)
"""Longer than a batch may take."""


def keep_inline(database: Database, blobs: BlobStore, tenant_id: uuid.UUID, medium: InlineMedium) -> str:
    """Store the bytes; their `upload:` address. Equal content of the tenant is stored once. Raises `QuotaExceeded`."""
    file_id = uuid7()
    key = f"files/{tenant_id}/{file_id}"
    stat = blobs.put(key, medium.data)
    new = NewFile(
        file_id=file_id,
        tenant_id=tenant_id,
        filename=medium.name,
        purpose="vision",
        blob_key=key,
        size=stat.size,
        sha256=stat.sha256 or "",
        media_type=medium.mime,
        expires_at=datetime.now(UTC) + KEPT,
    )
    shared = False
    try:
        with database.begin() as conn:
            older = files.find_content(conn, tenant_id, new.sha256)
            files.insert(conn, new if older is None else replace(new, blob_key=older.blob_key))
            shared = older is not None
    except BaseException:
        blobs.delete(key)
        raise
    if shared:
        blobs.delete(key)
    return f"upload:{file_id}"
