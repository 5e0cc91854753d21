"""The shelf's rows: one a pack. Reuse and collection lock the same row, so neither can happen under the other.

Collection deletes the row first and the blob after the commit. A worker that asks in between finds no row, prepares
again and puts the blob anew; should the collector then delete that blob, the pack is missing when it is read, and its
item is repaired: prepared once more, uncounted.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from sqlalchemy import Connection, text

from pipelines.jobs.models import PackRef

_TOUCH = text("""
UPDATE packs SET used_at = now() WHERE key = :key
RETURNING key, sha256, size, tiles, media_hash
""")

_RECORD = text("""
INSERT INTO packs (key, tenant_id, sha256, size, tiles, media_hash)
VALUES (:key, :tenant_id, :sha256, :size, :tiles, :media_hash)
ON CONFLICT (key) DO UPDATE
SET sha256 = excluded.sha256, size = excluded.size, tiles = excluded.tiles, media_hash = excluded.media_hash,
    used_at = now()
""")

# Old rows that no unfinished item needs. The unfinished are few beside the items of all time, and stand in small
# partial indexes; a row that reuse holds is skipped.
_COLLECT = text("""
WITH old AS (
    SELECT p.key FROM packs AS p
    WHERE p.used_at < now() - make_interval(secs => :older_than)
      AND NOT EXISTS (
          SELECT 1 FROM items AS i
          WHERE i.state IN ('ready', 'inferring') AND i.pack_key = p.key
      )
    ORDER BY p.used_at
    LIMIT :limit
    FOR UPDATE OF p SKIP LOCKED
)
DELETE FROM packs USING old WHERE packs.key = old.key
RETURNING packs.key
""")


@dataclass(frozen=True, kw_only=True)
class PackRow:
    """A pack that lies in the blob store."""

    key: str
    sha256: str
    size: int
    tiles: int
    media_hash: str


def lookup_and_touch(conn: Connection, key: str) -> PackRow | None:
    """The pack of this key, its age begun anew; locked against collection until the transaction ends."""
    row = conn.execute(_TOUCH, {"key": key}).one_or_none()
    if row is None:
        return None
    return PackRow(key=row.key, sha256=row.sha256, size=row.size, tiles=row.tiles, media_hash=row.media_hash)


def record(conn: Connection, *, tenant_id: uuid.UUID, pack: PackRef, media_hash: str) -> None:
    """The blob has been put: from now on the pack can be found."""
    values = {
        "key": pack.key,
        "tenant_id": tenant_id,
        "sha256": pack.sha256,
        "size": pack.size,
        "tiles": pack.tiles,
        "media_hash": media_hash,
    }
    conn.execute(_RECORD, values)


def collect(conn: Connection, *, older_than: float, limit: int) -> tuple[str, ...]:
    """Remove rows unused for `older_than` seconds, at most `limit`; the keys whose blobs may go after the commit."""
    return tuple(conn.execute(_COLLECT, {"older_than": older_than, "limit": limit}).scalars())
