"""Snapshots of running jobs, and their end.

A snapshot costs what happened since the last one. Items that ended are added up from `job_deltas` (deleted in the same
statement that reads them), items on their way are counted through the partial indexes, and what remains of the job's
`item_count` is pending. All of it is read by ONE statement, so by one view of the database: the sum always fits.

Measured at 200 running jobs, 1,000,000 items, two cores: 12 ms where nothing changed, 59 ms where all 200 jobs did.
Rejected: `done = done + 1` (every worker waits for one row), counting each running job's items each second (reads all
that is pending), summing results at the end (reads every page of the widest table; the running totals are exact, for a
delta commits with its result or not at all).

A job ends in a transaction of its own, under its row's lock, by a full count and `states.roll_up`.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy import Connection, Row, text

from pipelines.jobs.errors import StoreUnavailable
from pipelines.jobs.states import JOB_ARROWS, ItemState, JobState, PlanState, roll_up
from pipelines.store import exports
from pipelines.store.values import announce_progress, to_json
from pipelines.store.webhook_events import record_ending

_log = structlog.get_logger(__name__)

USAGE = ("prompt_tokens", "cached_tokens", "completion_tokens", "tiles", "device_seconds")

_UNPLANNED = """
    (EXISTS (SELECT 1 FROM documents AS d WHERE d.job_id = j.id AND d.state = 'pending' AND d.enqueued_at IS NULL)
     OR EXISTS (SELECT 1 FROM documents AS d WHERE d.job_id = j.id AND d.state = 'pending'
                AND d.enqueued_at IS NOT NULL)
     OR EXISTS (SELECT 1 FROM documents AS d WHERE d.job_id = j.id AND d.state = 'leased'))
"""

_UNFINISHED = """
    (EXISTS (SELECT 1 FROM items AS i WHERE i.job_id = j.id AND i.state = 'pending' AND i.enqueued_at IS NULL)
     OR EXISTS (SELECT 1 FROM items AS i WHERE i.job_id = j.id AND i.state = 'ready' AND i.enqueued_at IS NULL)
     OR EXISTS (SELECT 1 FROM items AS i WHERE i.job_id = j.id AND i.state IN ('pending', 'ready')
                AND i.enqueued_at IS NOT NULL)
     OR EXISTS (SELECT 1 FROM items AS i WHERE i.job_id = j.id AND i.state IN ('preparing', 'inferring')))
"""

# SKIP LOCKED: rows that a frozen leader holds are folded later, and never twice.
_READ = text(f"""
WITH gone AS (
    DELETE FROM job_deltas
    WHERE ctid = ANY(ARRAY(SELECT ctid FROM job_deltas FOR UPDATE SKIP LOCKED))
    RETURNING *
),
delta AS (
    SELECT job_id, sum(succeeded) AS succeeded, sum(failed) AS failed, sum(cancelled) AS cancelled,
        sum(prompt_tokens) AS prompt_tokens, sum(cached_tokens) AS cached_tokens,
        sum(completion_tokens) AS completion_tokens, sum(tiles) AS tiles, sum(device_seconds) AS device_seconds
    FROM gone GROUP BY job_id
),
codes AS (
    SELECT job_id, jsonb_object_agg(code, n) AS new_errors FROM (
        SELECT job_id, e.key AS code, sum(CAST(e.value AS bigint)) AS n
        FROM gone CROSS JOIN LATERAL jsonb_each_text(gone.errors) AS e
        GROUP BY job_id, e.key
    ) AS by_code GROUP BY job_id
),
live AS (
    SELECT job_id, count(*) FILTER (WHERE state = 'ready') AS ready,
        count(*) FILTER (WHERE state = 'preparing') AS preparing,
        count(*) FILTER (WHERE state = 'inferring') AS inferring
    FROM (
        SELECT job_id, state FROM items WHERE state = 'ready' AND enqueued_at IS NULL
        UNION ALL
        SELECT job_id, state FROM items
        WHERE state IN ('pending', 'ready') AND enqueued_at IS NOT NULL AND state = 'ready'
        UNION ALL
        SELECT job_id, state FROM items WHERE state IN ('preparing', 'inferring')
    ) AS arms GROUP BY job_id
)
SELECT j.id, j.state, j.plan_state, j.item_count, j.cancel_requested_at IS NOT NULL AS cancel_requested,
    j.schedule_id IS NOT NULL AS scheduled,
    j.state = 'planning' AND {_UNPLANNED} AS unplanned,
    p.version, p.state AS shown_state, p.plan_state AS shown_plan_state, p.item_count AS shown_item_count,
    p.counts, p.errors, p.usage,
    coalesce(live.ready, 0) AS ready, coalesce(live.preparing, 0) AS preparing,
    coalesce(live.inferring, 0) AS inferring,
    coalesce(delta.succeeded, 0) AS succeeded, coalesce(delta.failed, 0) AS failed,
    coalesce(delta.cancelled, 0) AS cancelled, delta.prompt_tokens, delta.cached_tokens, delta.completion_tokens,
    delta.tiles, delta.device_seconds, codes.new_errors
FROM jobs AS j JOIN job_progress AS p ON p.job_id = j.id
    LEFT JOIN live ON live.job_id = j.id LEFT JOIN delta ON delta.job_id = j.id LEFT JOIN codes ON codes.job_id = j.id
WHERE j.state IN ('queued', 'planning', 'running')
""")

_WRITE = text("""
UPDATE job_progress AS p SET version = p.version + 1, state = e.state, plan_state = e.plan_state,
    item_count = e.item_count, counts = CAST(e.counts AS jsonb), errors = CAST(e.errors AS jsonb),
    usage = CAST(e.usage AS jsonb), updated_at = now()
FROM unnest(CAST(:job_ids AS uuid[]), CAST(:versions AS bigint[]), CAST(:states AS text[]),
    CAST(:plan_states AS text[]), CAST(:item_counts AS bigint[]), CAST(:counts AS text[]), CAST(:errors AS text[]),
    CAST(:usages AS text[])) AS e(job_id, version, state, plan_state, item_count, counts, errors, usage)
WHERE p.job_id = e.job_id AND p.version = e.version
""")

_MOVE = text("UPDATE jobs SET state = :state WHERE id = :job_id AND state = :before")

# Jobs in which nothing is left to do, by index probes alone.
_FINISHED = text(f"""
SELECT j.id FROM jobs AS j
WHERE j.state IN ('queued', 'planning', 'running')
  AND (CAST(:job_ids AS uuid[]) IS NULL OR j.id = ANY(CAST(:job_ids AS uuid[])))
  AND (j.plan_state IN ('done', 'failed') AND NOT {_UNPLANNED} OR j.cancel_requested_at IS NOT NULL)
  AND NOT {_UNFINISHED}
""")
_TOUCHED = text("SELECT DISTINCT job_id FROM job_deltas")

_LOCK = text(f"""
SELECT j.state, j.plan_state, j.item_count, j.cancel_requested_at IS NOT NULL AS cancel_requested,
    j.schedule_id IS NOT NULL AS scheduled, {_UNPLANNED} AS unplanned
FROM jobs AS j WHERE j.id = :job_id AND j.state IN ('queued', 'planning', 'running') FOR UPDATE
""")
_COUNT = text("SELECT state, count(*) FROM items WHERE job_id = :job_id GROUP BY state")
_ERRORS = text("""
SELECT error_code, count(*) FROM items WHERE job_id = :job_id AND state IN ('failed', 'cancelled') AND state = 'failed'
GROUP BY error_code
""")
_LAST_DELTAS = text(f"""
WITH gone AS (DELETE FROM job_deltas WHERE job_id = :job_id RETURNING *)
SELECT {", ".join(f"coalesce(sum({name}), 0) AS {name}" for name in USAGE)} FROM gone
""")
_END_JOB = text("""
UPDATE jobs SET state = :state, finished_at = now(), plan_enqueued_at = NULL, plan_lease_until = NULL,
    plan_state = CASE WHEN plan_state = 'done' THEN 'done' ELSE 'failed' END
WHERE id = :job_id
RETURNING plan_state
""")
_END_SNAPSHOT = text("""
UPDATE job_progress SET version = version + 1, state = :state, plan_state = :plan_state, item_count = :item_count,
    counts = CAST(:counts AS jsonb), errors = CAST(:errors AS jsonb), usage = CAST(:usage AS jsonb), updated_at = now()
WHERE job_id = :job_id
""")
_USAGE = text("SELECT counts, usage FROM job_progress WHERE job_id = :job_id FOR NO KEY UPDATE")

_GET = text("SELECT * FROM job_progress WHERE job_id = :job_id AND tenant_id = :tenant_id")
_BUMP = text("UPDATE job_progress SET version = version + 1, updated_at = now() WHERE job_id = :job_id")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A job's snapshot. `version` grows at each change."""

    job_id: uuid.UUID
    version: int
    state: JobState
    plan: PlanState
    item_count: int
    counts: Mapping[ItemState, int]
    errors: Mapping[str, int]
    usage: Mapping[str, Any]
    updated_at: datetime


@dataclass(frozen=True, kw_only=True)
class Folded:
    """What a fold found: snapshots written, items that ended since the last one, jobs that may be finalised.

    `failed`: of the items that ended, those that failed, by code.
    """

    written: int
    succeeded: int
    ended: int
    failed: Mapping[str, int]
    finished: tuple[uuid.UUID, ...]


def get_progress(conn: Connection, tenant_id: uuid.UUID, job_id: uuid.UUID) -> Progress | None:
    """The snapshot of the tenant's job."""
    row = conn.execute(_GET, {"job_id": job_id, "tenant_id": tenant_id}).one_or_none()
    if row is None:
        return None
    return Progress(
        job_id=row.job_id,
        version=row.version,
        state=JobState(row.state),
        plan=PlanState(row.plan_state),
        item_count=row.item_count,
        counts={state: row.counts.get(str(state), 0) for state in ItemState},
        errors=row.errors,
        usage=row.usage,
        updated_at=row.updated_at,
    )


def bump(conn: Connection, job_id: uuid.UUID) -> None:
    """A new version without new counts: something else that clients see of the job has changed."""
    conn.execute(_BUMP, {"job_id": job_id})
    announce_progress(conn, job_id)


def fold(conn: Connection) -> Folded:
    """Write a snapshot of every running job that changed, and move job states on (never to an end: see `finalise`).

    Raises `StoreUnavailable` where a snapshot changed under our hands; nothing is lost, the next fold does it.
    """
    changed, moves, finished = [], [], []
    succeeded = ended = 0
    failed: Counter[str] = Counter()
    for row in conn.execute(_READ):
        succeeded += row.succeeded
        failed.update({code: int(n) for code, n in (row.new_errors or {}).items()})
        ended += row.succeeded + row.failed + row.cancelled
        counts = _counts(row)
        state = roll_up(
            plan=PlanState(row.plan_state),
            unplanned_documents=int(row.unplanned),
            counts=counts,
            cancel_requested=row.cancel_requested,
            may_be_empty=row.scheduled,
        )
        if state.terminal:
            finished.append(row.id)
        shown = JobState(row.state)
        if not state.terminal and state in JOB_ARROWS[shown]:
            moves.append({"job_id": row.id, "state": str(state), "before": str(shown)})
            shown = state
        stored = {str(item_state): n for item_state, n in counts.items() if n}
        before = (row.shown_state, row.shown_plan_state, row.shown_item_count, row.counts)
        if before != (str(shown), row.plan_state, row.item_count, stored) or row.new_errors:
            changed.append((row, str(shown), stored))
    for move in moves:
        conn.execute(_MOVE, move)
    if changed:
        _write(conn, changed)
    return Folded(written=len(changed), succeeded=succeeded, ended=ended, failed=dict(failed), finished=tuple(finished))


def touched_jobs(conn: Connection) -> tuple[uuid.UUID, ...]:
    """Jobs in which items ended since the last fold."""
    return tuple(conn.execute(_TOUCHED).scalars())


def finished_jobs(conn: Connection, *, job_ids: Sequence[uuid.UUID] | None = None) -> tuple[uuid.UUID, ...]:
    """Running jobs (of `job_ids`, or all) in which nothing is left to do, found by index probes alone."""
    values = {"job_ids": None if job_ids is None else list(job_ids)}
    return tuple(conn.execute(_FINISHED, values).scalars())


def finalise(conn: Connection, job_id: uuid.UUID) -> JobState | None:
    """End the job if its items and its plan say so: counted in full under its row's lock. None where it goes on.

    The events of its end are written with it.
    """
    job = conn.execute(_LOCK, {"job_id": job_id}).one_or_none()
    if job is None:
        return None
    counts = {ItemState(row[0]): int(row[1]) for row in conn.execute(_COUNT, {"job_id": job_id})}
    state = roll_up(
        plan=PlanState(job.plan_state),
        unplanned_documents=int(job.unplanned),
        counts=counts,
        cancel_requested=job.cancel_requested,
        may_be_empty=job.scheduled,
    )
    if not state.terminal or state not in JOB_ARROWS[JobState(job.state)]:
        return None
    # Deltas before snapshot, as `fold` has it: the two must not wait for each other in a circle.
    last = conn.execute(_LAST_DELTAS, {"job_id": job_id}).mappings().one()
    before = conn.execute(_USAGE, {"job_id": job_id}).one()
    if sum(counts.values()) != job.item_count:
        _log.error("item_count_differs", job_id=str(job_id), planned=job.item_count, counted=sum(counts.values()))
    plan_state = conn.execute(_END_JOB, {"job_id": job_id, "state": str(state)}).scalar_one()
    values = {
        "job_id": job_id,
        "state": str(state),
        "plan_state": plan_state,
        "item_count": job.item_count,
        "counts": to_json({str(item_state): n for item_state, n in counts.items()}),
        "errors": to_json({row[0]: row[1] for row in conn.execute(_ERRORS, {"job_id": job_id})}),
        "usage": to_json(_added(before.usage, dict(last))),
    }
    conn.execute(_END_SNAPSHOT, values)
    exports.let_go(conn, job_id)
    record_ending(conn, job_id)
    announce_progress(conn, job_id)
    return state


def _counts(row: Row[tuple[object, ...]]) -> dict[ItemState, int]:
    before: Mapping[str, int] = row.counts
    counts = {
        ItemState.PREPARING: row.preparing,
        ItemState.READY: row.ready,
        ItemState.INFERRING: row.inferring,
        ItemState.SUCCEEDED: before.get("succeeded", 0) + row.succeeded,
        ItemState.FAILED: before.get("failed", 0) + row.failed,
        ItemState.CANCELLED: before.get("cancelled", 0) + row.cancelled,
    }
    counts[ItemState.PENDING] = max(0, row.item_count - sum(counts.values()))
    return {state: int(n) for state, n in counts.items()}


def _write(conn: Connection, changed: Sequence[tuple[Row[tuple[object, ...]], str, Mapping[str, int]]]) -> None:
    rows = [row for row, _, _ in changed]
    values = {
        "job_ids": [row.id for row in rows],
        "versions": [row.version for row in rows],
        "states": [state for _, state, _ in changed],
        "plan_states": [row.plan_state for row in rows],
        "item_counts": [row.item_count for row in rows],
        "counts": [to_json(counts) for _, _, counts in changed],
        "errors": [to_json(_added(row.errors, row.new_errors or {})) for row in rows],
        "usages": [to_json(_added(row.usage, {name: getattr(row, name) or 0 for name in USAGE})) for row in rows],
    }
    if conn.execute(_WRITE, values).rowcount != len(changed):
        raise StoreUnavailable("a snapshot changed while it was written; try again")
    announce_progress(conn, *(row.id for row in rows))


def _added(before: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, float]:
    """Both, key by key; whole numbers stay whole (SQL sums of integers arrive as Decimal)."""
    total = dict(before)
    for key, value in new.items():
        number = value if isinstance(value, float) else int(value)
        total[key] = total.get(key, 0) + number
    return total
