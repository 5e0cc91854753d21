"""Items: claimed, kept, completed. Every write names the state it leaves and the attempt it belongs to.

Rows are always locked in the order of their key, so no two of these statements can wait for each other in a circle.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Row, text

from pipelines.jobs.models import ClaimedItem, Document, MediaRef, PackRef
from pipelines.jobs.outcomes import Outcome
from pipelines.jobs.states import ItemState
from pipelines.store.completions import Key, write_outcomes
from pipelines.store.values import Wake, wake

__all__ = ["Beat", "Key", "claim_infer", "claim_prepare", "complete", "forget_hints", "heartbeat", "reread"]

# A repeated message matches nothing. A suspect is claimed only after the dispatcher has picked it: an old message must
# not lead it around its lane.
_CLAIM = """
WITH wanted AS (SELECT * FROM unnest(CAST(:job_ids AS uuid[]), CAST(:seqs AS bigint[])) AS w(job_id, seq)),
picked AS (
    SELECT i.job_id, i.seq
    FROM wanted JOIN items AS i ON i.job_id = wanted.job_id AND i.seq = wanted.seq JOIN jobs AS j ON j.id = i.job_id
    WHERE i.state = '{state}' AND i.available_at <= now() AND (i.losses = 0 OR i.enqueued_at IS NOT NULL)
      AND j.cancel_requested_at IS NULL AND (j.deadline_at IS NULL OR j.deadline_at > now())
    ORDER BY i.job_id, i.seq
    FOR NO KEY UPDATE OF i SKIP LOCKED
),
claimed AS (
    UPDATE items AS i SET state = '{leased}', attempt = i.attempt + 1, worker = :worker, enqueued_at = NULL,
        lease_until = now() + make_interval(secs => :lease){started}
    FROM picked
    WHERE i.job_id = picked.job_id AND i.seq = picked.seq AND i.state = '{state}'
    RETURNING i.job_id, i.seq, i.attempt, i.losses, i.fails, i.doc, i.page, i.media_hash,
        i.pack_key, i.pack_sha256, i.pack_bytes, i.tiles
)
SELECT claimed.*, d.name, d.media, d.overrides, d.metadata, {pack}
FROM claimed JOIN documents AS d ON d.job_id = claimed.job_id AND d.doc = claimed.doc{packs}
ORDER BY claimed.job_id, claimed.seq
"""

_CLAIM_PREPARE = text(
    _CLAIM.format(state="pending", leased="preparing", started="", pack="CAST(NULL AS bytea) AS data", packs="")
)
# A small pack comes with the claim: no request to the blob store.
_CLAIM_INFER = text(
    _CLAIM.format(
        state="ready",
        leased="inferring",
        started=", started_at = now()",
        pack="p.data",
        packs="\n    LEFT JOIN packs AS p ON p.key = claimed.pack_key AND p.sha256 = claimed.pack_sha256",
    )
)

# One statement for everything a process holds. An expired lease that nobody has swept yet is still its holder's.
_HEARTBEAT = text("""
WITH held AS (
    SELECT * FROM unnest(CAST(:job_ids AS uuid[]), CAST(:seqs AS bigint[]), CAST(:attempts AS int[]))
        AS h(job_id, seq, attempt)
),
locked AS (
    SELECT i.job_id, i.seq, i.attempt, j.cancel_requested_at IS NOT NULL AS cancelled
    FROM held JOIN items AS i ON i.job_id = held.job_id AND i.seq = held.seq JOIN jobs AS j ON j.id = i.job_id
    WHERE i.attempt = held.attempt AND i.state IN ('preparing', 'inferring')
    ORDER BY i.job_id, i.seq
    FOR NO KEY UPDATE OF i
)
UPDATE items AS i SET lease_until = now() + make_interval(secs => :lease)
FROM locked
WHERE i.job_id = locked.job_id AND i.seq = locked.seq AND i.attempt = locked.attempt
  AND i.state IN ('preparing', 'inferring')
RETURNING i.job_id, i.seq, i.attempt, locked.cancelled
""")

_REREAD = text("""
SELECT i.job_id, i.seq, i.attempt, i.state, k.attempt AS mine
FROM unnest(CAST(:job_ids AS uuid[]), CAST(:seqs AS bigint[]), CAST(:attempts AS int[])) AS k(job_id, seq, attempt)
JOIN items AS i ON i.job_id = k.job_id AND i.seq = k.seq
""")

# A worker that drains took the message but not the item: the dispatcher may send another at once.
_FORGET_HINTS = text("""
WITH wanted AS (SELECT * FROM unnest(CAST(:job_ids AS uuid[]), CAST(:seqs AS bigint[])) AS w(job_id, seq)),
picked AS (
    SELECT i.job_id, i.seq FROM wanted JOIN items AS i ON i.job_id = wanted.job_id AND i.seq = wanted.seq
    WHERE i.state IN ('pending', 'ready') AND i.enqueued_at IS NOT NULL
    ORDER BY i.job_id, i.seq
    FOR NO KEY UPDATE OF i SKIP LOCKED
)
UPDATE items AS i SET enqueued_at = NULL FROM picked WHERE i.job_id = picked.job_id AND i.seq = picked.seq
""")


@dataclass(frozen=True, kw_only=True)
class Beat:
    """The answer to a heartbeat: leases that were extended, and those of them whose job was cancelled (stop)."""

    kept: frozenset[Key]
    cancelled: frozenset[Key]


def claim_prepare(
    conn: Connection, job_id: uuid.UUID, seqs: Sequence[int], *, worker: str, lease: float
) -> tuple[ClaimedItem, ...]:
    """Lease those of the job's items that are pending, for `lease` seconds, in order of seq."""
    values = {"job_ids": [job_id] * len(seqs), "seqs": list(seqs), "worker": worker, "lease": lease}
    return _claimed(conn.execute(_CLAIM_PREPARE, values).all())


def claim_infer(
    conn: Connection, keys: Sequence[tuple[uuid.UUID, int]], *, worker: str, lease: float
) -> tuple[ClaimedItem, ...]:
    """Lease those of `keys` (job, seq) that are ready, for `lease` seconds. A key that comes twice is claimed once."""
    values = {"job_ids": [job for job, _ in keys], "seqs": [seq for _, seq in keys], "worker": worker, "lease": lease}
    return _claimed(conn.execute(_CLAIM_INFER, values).all())


def heartbeat(conn: Connection, held: Sequence[Key], *, lease: float) -> Beat:
    """Extend the leases of `held` (job, seq, attempt) by `lease` seconds; what is not in `kept` has been lost."""
    rows = conn.execute(_HEARTBEAT, {**_arrays(held), "lease": lease}).all()
    return Beat(
        kept=frozenset((row.job_id, row.seq, row.attempt) for row in rows),
        cancelled=frozenset((row.job_id, row.seq, row.attempt) for row in rows if row.cancelled),
    )


def complete(conn: Connection, entries: Sequence[tuple[ClaimedItem, Outcome]]) -> frozenset[Key]:
    """Write outcomes, each fenced by its item's attempt; the keys that were accepted. The others lost their lease."""
    return write_outcomes(conn, entries)


def reread(conn: Connection, keys: Sequence[Key]) -> Mapping[Key, tuple[ItemState, int]]:
    """State and attempt of items now, by the key that was asked with: settles a commit whose answer was lost.

    `succeeded` (or another end) with my attempt: my write stands. Anything else: it was rejected, or never made.
    """
    rows = conn.execute(_REREAD, _arrays(keys)).all()
    return {(row.job_id, row.seq, row.mine): (ItemState(row.state), row.attempt) for row in rows}


def forget_hints(conn: Connection, keys: Sequence[tuple[uuid.UUID, int]]) -> int:
    """Let the dispatcher pick these (job, seq) again at once: their messages were taken but not worked on."""
    values = {"job_ids": [job for job, _ in keys], "seqs": [seq for _, seq in keys]}
    forgotten = conn.execute(_FORGET_HINTS, values).rowcount
    if forgotten:
        wake(conn, Wake.PREPARE, Wake.INFER)
    return forgotten


def _arrays(keys: Sequence[Key]) -> dict[str, list[object]]:
    return {
        "job_ids": [job for job, _, _ in keys],
        "seqs": [seq for _, seq, _ in keys],
        "attempts": [attempt for _, _, attempt in keys],
    }


def _claimed(rows: Sequence[Row[tuple[object, ...]]]) -> tuple[ClaimedItem, ...]:
    documents: dict[tuple[uuid.UUID, int], Document] = {}
    claimed = []
    for row in rows:
        document = documents.get((row.job_id, row.doc))
        if document is None:
            document = documents[row.job_id, row.doc] = Document(
                job_id=row.job_id,
                doc=row.doc,
                name=row.name,
                media=tuple(MediaRef.from_json(medium) for medium in row.media),
                overrides=row.overrides,
                metadata=row.metadata,
            )
        pack = None
        if row.pack_key is not None:
            pack = PackRef(
                key=row.pack_key, sha256=row.pack_sha256, size=row.pack_bytes, tiles=row.tiles, data=row.data
            )
        claimed.append(
            ClaimedItem(
                job_id=row.job_id,
                seq=row.seq,
                attempt=row.attempt,
                losses=row.losses,
                fails=row.fails,
                page=row.page,
                document=document,
                pack=pack,
                media_hash=row.media_hash,
            )
        )
    return tuple(claimed)
