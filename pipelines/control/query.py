"""What clients read: jobs, items, results. Every statement names the tenant; every listing is a keyset.

A job is read as the leader's last snapshot has it (`job_progress`), so every replica of the api answers alike and no
poll counts rows. A listing of results holds one page in memory, whatever the job holds.
"""

from __future__ import annotations

import array
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, text

from pipelines.jobs.models import Job, MediaRef
from pipelines.jobs.states import ItemState, JobState, PlanState
from pipelines.store import jobs

_MOST_QUEUED = 10_000  # a queue position beyond this is said as this

# Beside the job: when its snapshot was written, and, while nobody has looked at it, how many are ahead of it.
_SNAPSHOT = text("""
SELECT p.updated_at, CASE WHEN p.state = 'queued' THEN (
    SELECT count(*) FROM (
        SELECT 1 FROM jobs AS a
        WHERE a.state IN ('queued', 'planning', 'running') AND (a.priority, a.id) < (j.priority, j.id)
        LIMIT :most
    ) AS ahead
) END AS queue_position
FROM jobs AS j JOIN job_progress AS p ON p.job_id = j.id
WHERE j.id = :job AND j.tenant_id = :tenant
""")

_ITEM = """
SELECT i.seq, i.doc, i.page, i.state, i.attempt, i.losses, i.fails, i.worker, i.tiles, i.media_hash, i.error_code,
       i.error_message, i.created_at, i.prepared_at, i.started_at, i.finished_at, i.pack_key, i.pack_sha256,
       d.name, d.media, d.metadata
FROM items i JOIN documents d ON d.job_id = i.job_id AND d.doc = i.doc
WHERE i.job_id = :job AND i.tenant_id = :tenant
"""

_READ_ITEM = text(_ITEM + "AND i.seq = :seq")

_SHOWN = """
SELECT i.seq, i.doc, i.page, i.state, i.attempt, i.error_code, i.error_message, d.name, d.metadata,
       r.text, r.output, r.flags, r.finish_reason, r.media_hash, r.prompt_tokens, r.cached_tokens, r.completion_tokens,
       r.tiles, r.device_seconds, r.mean_logprob, r.provenance, r.created_at
"""

_RESULTS = """
{shown}
FROM items i
JOIN documents d ON d.job_id = i.job_id AND d.doc = i.doc
LEFT JOIN results r ON r.job_id = i.job_id AND r.seq = i.seq
WHERE i.job_id = :job AND i.tenant_id = :tenant AND i.state = ANY(:states) AND i.seq = ANY(:seqs)
"""

# The page of items first, then one probe for each of its rows. As a plain join this was planned as a merge that read
# the job's results from the first on, for each page again: 2 s a page behind 600,000 rows, and growing.
RESULTS_AFTER = text(
    """
WITH page AS (
    SELECT seq, doc, page, state, attempt, error_code, error_message FROM items
    WHERE job_id = :job AND tenant_id = :tenant AND state = ANY(:states) AND seq > :after
    ORDER BY seq
    LIMIT :limit
)
{shown}
FROM page AS i
CROSS JOIN LATERAL (SELECT name, metadata FROM documents WHERE job_id = :job AND doc = i.doc OFFSET 0) AS d
LEFT JOIN LATERAL (SELECT * FROM results WHERE job_id = :job AND seq = i.seq OFFSET 0) AS r ON true
ORDER BY i.seq
""".replace("{shown}", _SHOWN)
)
_RESULTS_AT = text(_RESULTS.replace("{shown}", _SHOWN))

_READING_ORDER = text("""
SELECT array_agg(seq ORDER BY doc, page NULLS FIRST, seq) FROM items
WHERE job_id = :job AND tenant_id = :tenant AND state = ANY(:states)
""")


@dataclass(frozen=True, kw_only=True)
class JobView:
    """A job, with what is worked out from its snapshot: by the snapshot's own time, so alike on every replica."""

    job: Job
    updated_at: datetime | None = None
    queue_position: int | None = None

    @property
    def planned(self) -> bool:
        """True once every document is known; its pages may still be counted while the state is `planning`."""
        return self.job.plan is PlanState.DONE and self.job.state not in {JobState.QUEUED, JobState.PLANNING}

    @property
    def ended(self) -> int:
        """Items that have ended, in any way."""
        return sum(count for state, count in self.job.counts.items() if state.terminal)

    @property
    def progress(self) -> float:
        """From 0 to 1, of the items known so far."""
        if self.job.state.terminal:
            return 1.0
        return min(1.0, self.ended / self.job.item_count) if self.job.item_count else 0.0

    @property
    def eta_seconds(self) -> float | None:
        """Seconds until the last item ends at the pace so far; None while nobody can tell."""
        job = self.job
        if (
            job.state.terminal
            or not self.planned
            or job.started_at is None
            or self.updated_at is None
            or not self.ended
        ):
            return None
        elapsed = (self.updated_at - job.started_at).total_seconds()
        return max(0.0, elapsed) * max(0, job.item_count - self.ended) / self.ended


@dataclass(frozen=True, kw_only=True)
class ItemView:
    """An item and the document it is of. `page` is 0-based."""

    job_id: uuid.UUID
    seq: int
    doc: int
    page: int | None
    name: str
    media: tuple[MediaRef, ...]
    metadata: Mapping[str, Any]
    state: ItemState
    attempt: int
    losses: int
    fails: int
    worker: str | None
    tiles: int | None
    media_hash: str | None
    pack_key: str | None
    pack_sha256: str | None
    error_code: str | None
    error_message: str | None
    created_at: datetime
    prepared_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class ResultView:
    """What an item ended in: its result, or its error. `page` is 0-based."""

    job_id: uuid.UUID
    seq: int
    doc: int
    page: int | None
    name: str
    metadata: Mapping[str, Any]
    state: ItemState
    attempt: int
    error_code: str | None
    error_message: str | None
    text: str | None
    output: Mapping[str, Any] | None
    flags: tuple[str, ...]
    finish_reason: str | None
    media_hash: str | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    tiles: int
    device_seconds: float
    mean_logprob: float | None
    provenance: Mapping[str, Any] | None
    created_at: datetime | None


SUCCEEDED = (ItemState.SUCCEEDED,)
ENDED = (ItemState.SUCCEEDED, ItemState.FAILED, ItemState.CANCELLED)


def read_job(conn: Connection, tenant_id: uuid.UUID, job_id: uuid.UUID) -> JobView | None:
    """The job, or None where the tenant has none of this id."""
    job = jobs.get_job(conn, tenant_id, job_id)
    if job is None:
        return None
    row = conn.execute(_SNAPSHOT, {"job": job_id, "tenant": tenant_id, "most": _MOST_QUEUED}).one()
    return JobView(job=job, updated_at=row.updated_at, queue_position=row.queue_position)


def list_items(
    conn: Connection,
    tenant_id: uuid.UUID,
    job_id: uuid.UUID,
    *,
    states: Sequence[ItemState] = (),
    code: str | None = None,
    after: int = -1,
    limit: int,
) -> tuple[ItemView, ...]:
    """Items in order, behind `after`. `code`: only failed items with this error code."""
    parts = [_ITEM, "AND i.seq > :after"]
    values: dict[str, Any] = {"job": job_id, "tenant": tenant_id, "after": after, "limit": limit}
    if states:
        parts.append("AND i.state = ANY(:states)")
        values["states"] = [state.value for state in states]
    if code is not None:
        parts.append("AND i.state = 'failed' AND i.error_code = :code")
        values["code"] = code
    parts.append("ORDER BY i.seq LIMIT :limit")
    return tuple(_item_view(job_id, row) for row in conn.execute(text(" ".join(parts)), values))


def read_item(conn: Connection, tenant_id: uuid.UUID, job_id: uuid.UUID, seq: int) -> ItemView | None:
    """One item, or None."""
    row = conn.execute(_READ_ITEM, {"job": job_id, "tenant": tenant_id, "seq": seq}).one_or_none()
    return None if row is None else _item_view(job_id, row)


def read_results(
    conn: Connection,
    tenant_id: uuid.UUID,
    job_id: uuid.UUID,
    *,
    states: Sequence[ItemState] = SUCCEEDED,
    after: int = -1,
    limit: int,
) -> tuple[ResultView, ...]:
    """Results in the order of `seq`, behind `after`."""
    rows = conn.execute(
        RESULTS_AFTER,
        {
            "job": job_id,
            "tenant": tenant_id,
            "after": after,
            "limit": limit,
            "states": [state.value for state in states],
        },
    )
    return tuple(_result_view(job_id, row) for row in rows)


def read_result(conn: Connection, tenant_id: uuid.UUID, job_id: uuid.UUID, seq: int) -> ResultView | None:
    """The ended item's result or error, or None."""
    found = results_at(conn, tenant_id, job_id, [seq])
    return found[0] if found else None


def reading_order(conn: Connection, tenant_id: uuid.UUID, job_id: uuid.UUID) -> array.array[int]:
    """The seqs of the items that have ended, document after document, page after page: 8 bytes an item."""
    found = conn.execute(
        _READING_ORDER, {"job": job_id, "tenant": tenant_id, "states": [state.value for state in ENDED]}
    ).scalar_one()
    return array.array("q", found or ())


def results_at(
    conn: Connection, tenant_id: uuid.UUID, job_id: uuid.UUID, seqs: Sequence[int]
) -> tuple[ResultView, ...]:
    """Results of these items, in the order of `seqs`."""
    rows = conn.execute(
        _RESULTS_AT,
        {"job": job_id, "tenant": tenant_id, "seqs": list(seqs), "states": [state.value for state in ENDED]},
    )
    found = {row.seq: _result_view(job_id, row) for row in rows}
    return tuple(found[seq] for seq in seqs if seq in found)


def in_pages(order: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """`order` cut into runs of `size`."""
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _item_view(job_id: uuid.UUID, row: Row[Any]) -> ItemView:
    return ItemView(
        job_id=job_id,
        seq=row.seq,
        doc=row.doc,
        page=row.page,
        name=row.name,
        media=tuple(MediaRef.from_json(entry) for entry in row.media),
        metadata=row.metadata,
        state=ItemState(row.state),
        attempt=row.attempt,
        losses=row.losses,
        fails=row.fails,
        worker=row.worker,
        tiles=row.tiles,
        media_hash=row.media_hash,
        pack_key=row.pack_key,
        pack_sha256=row.pack_sha256,
        error_code=row.error_code,
        error_message=row.error_message,
        created_at=row.created_at,
        prepared_at=row.prepared_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
    )


def _result_view(job_id: uuid.UUID, row: Row[Any]) -> ResultView:
    return ResultView(
        job_id=job_id,
        seq=row.seq,
        doc=row.doc,
        page=row.page,
        name=row.name,
        metadata=row.metadata,
        state=ItemState(row.state),
        attempt=row.attempt,
        error_code=row.error_code,
        error_message=row.error_message,
        text=row.text,
        output=row.output,
        flags=tuple(row.flags or ()),
        finish_reason=row.finish_reason,
        media_hash=row.media_hash,
        prompt_tokens=row.prompt_tokens or 0,
        cached_tokens=row.cached_tokens or 0,
        completion_tokens=row.completion_tokens or 0,
        tiles=row.tiles or 0,
        device_seconds=row.device_seconds or 0.0,
        mean_logprob=row.mean_logprob,
        provenance=row.provenance,
        created_at=row.created_at,
    )
