"""Tile packs: which blobs exist, and when each was last wanted.

A row is locked by reuse (`lookup_and_touch`) and by collection (`collect`) alike, and the collector deletes the blobs
before its transaction ends: who finds a row finds its blob, and who comes while it is collected waits a moment, finds
nothing, and prepares anew. A collector that dies in between leaves a row without a blob: its items are repaired.
A small pack lies in its row and has no blob. Rows are locked in the order of their keys.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from pipelines.jobs.models import PackRef

MIN_AGE = 24 * 3600.0
"""Seconds. A pack that was used more recently is never collected: its finder may not have written its item yet."""

_TOUCH = text("""
WITH found AS (
    SELECT key FROM packs WHERE key = ANY(CAST(:keys AS text[])) ORDER BY key FOR NO KEY UPDATE
)
UPDATE packs SET used_at = now() FROM found WHERE packs.key = found.key
RETURNING packs.key, packs.sha256, packs.size, packs.tiles, packs.media_hash
""")

_RECORD = text("""
INSERT INTO packs (key, tenant_id, sha256, size, tiles, media_hash, data)
SELECT key, :tenant_id, sha256, size, tiles, media_hash, data
FROM unnest(
    CAST(:keys AS text[]), CAST(:sha256s AS text[]), CAST(:sizes AS bigint[]), CAST(:tiles AS int[]),
    CAST(:media_hashes AS text[]), CAST(:data AS bytea[])
) AS e(key, sha256, size, tiles, media_hash, data)
ORDER BY key
ON CONFLICT (key) DO UPDATE SET sha256 = excluded.sha256, size = excluded.size, tiles = excluded.tiles,
    media_hash = excluded.media_hash, data = excluded.data, used_at = now()
""")

# Items that still need their pack stand in three partial indexes. The age is checked again under the lock.
_COLLECT = text("""
WITH wanted AS (
    SELECT pack_key FROM items WHERE state = 'ready' AND enqueued_at IS NULL
    UNION ALL
    SELECT pack_key FROM items WHERE state IN ('pending', 'ready') AND enqueued_at IS NOT NULL AND state = 'ready'
    UNION ALL
    SELECT pack_key FROM items WHERE state IN ('preparing', 'inferring') AND pack_key IS NOT NULL
),
old AS (
    SELECT key FROM packs
    WHERE used_at < now() - make_interval(secs => :older_than)
      AND NOT EXISTS (SELECT 1 FROM wanted WHERE wanted.pack_key = packs.key)
    ORDER BY used_at
    LIMIT :limit
    FOR UPDATE SKIP LOCKED
)
DELETE FROM packs USING old
WHERE packs.key = old.key AND packs.used_at < now() - make_interval(secs => :older_than)
RETURNING packs.key
""")
_KNOWN = text("SELECT key FROM packs WHERE key = ANY(CAST(:keys AS text[]))")


@dataclass(frozen=True, kw_only=True)
class PackRow:
    """A pack that lies in the blob store; `size` in bytes, `sha256` of the blob in hex."""

    key: str
    sha256: str
    size: int
    tiles: int
    media_hash: str


@dataclass(frozen=True, kw_only=True)
class NewPack:
    """A pack to be recorded. `data`: its bytes, where it has no blob."""

    pack: PackRef
    media_hash: str
    data: bytes | None = None


def lookup_and_touch(conn: Connection, keys: Sequence[str]) -> tuple[PackRow, ...]:
    """The packs under `keys`, their age begun anew; waits for a collector that holds one."""
    return tuple(PackRow(**row._mapping) for row in conn.execute(_TOUCH, {"keys": list(keys)}))


def record(conn: Connection, *, tenant_id: uuid.UUID, packs: Sequence[NewPack]) -> None:
    """Record packs that have been stored; a row that is there already is brought up to date."""
    once = {new.pack.key: new for new in packs}  # two items of one message may be the same picture
    values = {
        "tenant_id": tenant_id,
        "keys": list(once),
        "sha256s": [new.pack.sha256 for new in once.values()],
        "sizes": [new.pack.size for new in once.values()],
        "tiles": [new.pack.tiles for new in once.values()],
        "media_hashes": [new.media_hash for new in once.values()],
        "data": [new.data for new in once.values()],
    }
    conn.execute(_RECORD, values)


def collect(conn: Connection, *, older_than: float = MIN_AGE, limit: int = 50) -> tuple[str, ...]:
    """Delete rows of packs unused for `older_than` seconds that no unfinished item names; their keys.

    The caller deletes the blobs inside the same transaction, so `limit` stays small. Raises `ValueError` below 24 h.
    """
    if older_than < MIN_AGE:
        raise ValueError(f"packs used within {MIN_AGE} seconds may be wanted by an item that is being written")
    return tuple(conn.execute(_COLLECT, {"older_than": older_than, "limit": limit}).scalars())


def unknown(conn: Connection, keys: Sequence[str]) -> tuple[str, ...]:
    """Those of `keys` that have no row: blobs whose writer died before it recorded them."""
    known = set(conn.execute(_KNOWN, {"keys": list(keys)}).scalars())
    return tuple(key for key in keys if key not in known)
