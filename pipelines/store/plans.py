"""Planning: a job's source is listed under a lease, chunk by chunk, each chunk one transaction with its cursor.

A plan that dies between two chunks goes on at the cursor of the last one. Numbers (`doc`, `seq`) are allocated from the
job's own counters under its row lock, and every write names the plan's attempt: a zombie's chunk matches nothing, so no
document is planned twice and none is left out.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
from sqlalchemy import Connection, text

from pipelines.jobs.models import JsonObject, MediaRef
from pipelines.jobs.outcomes import Retry
from pipelines.jobs.states import JobState, PlanState, roll_up
from pipelines.store.values import Wake, announce_progress, clean_text, to_json, wake

# The first claim also moves the job on; its snapshot says so in the same transaction.
_CLAIM = text("""
WITH picked AS (
    SELECT id FROM jobs
    WHERE id = :job_id AND plan_state = 'pending' AND plan_available_at <= now() AND cancel_requested_at IS NULL
      AND state IN ('queued', 'planning', 'running') AND (deadline_at IS NULL OR deadline_at > now())
    FOR NO KEY UPDATE
)
UPDATE jobs SET plan_state = 'leased', plan_attempt = plan_attempt + 1,
    plan_lease_until = now() + make_interval(secs => :lease), plan_worker = :worker, plan_enqueued_at = NULL,
    state = :state, started_at = coalesce(started_at, now())
FROM picked
WHERE jobs.id = picked.id AND jobs.plan_state = 'pending' AND jobs.cancel_requested_at IS NULL
RETURNING jobs.plan_attempt, jobs.plan_losses, jobs.plan_fails, jobs.plan_cursor, jobs.item_count, jobs.document_count
""")

_CLAIMED_SNAPSHOT = text("""
UPDATE job_progress SET version = version + 1, state = :state, plan_state = 'leased', updated_at = now()
WHERE job_id = :job_id AND (state, plan_state) IS DISTINCT FROM (:state, 'leased')
""")

# The job's row is locked for the chunk: its counters are the next numbers.
_LOCK = text("""
SELECT tenant_id, item_count, document_count FROM jobs
WHERE id = :job_id AND plan_state = 'leased' AND plan_attempt = :attempt AND cancel_requested_at IS NULL
FOR NO KEY UPDATE
""")

# Kept by the session and emptied at each commit: making one for each chunk would bloat the catalog.
_STAGING = """
CREATE TEMPORARY TABLE IF NOT EXISTS plan_staging (
    doc bigint, name text, media jsonb, overrides jsonb, metadata jsonb, state text, pages integer,
    item_pages integer[], seq bigint, error_code text, error_message text
) ON COMMIT DELETE ROWS
"""

_COPY = """
COPY plan_staging (doc, name, media, overrides, metadata, state, pages, item_pages, seq, error_code, error_message)
FROM STDIN
"""

# No ON CONFLICT: numbers come from under the row lock, so a conflict would be a defect, and must be loud.
_INSERT_DOCUMENTS = text("""
INSERT INTO documents (job_id, doc, tenant_id, name, media, overrides, metadata, state, pages)
SELECT :job_id, doc, :tenant_id, name, media, overrides, metadata, state, pages FROM plan_staging
""")

_INSERT_ITEMS = text("""
INSERT INTO items (job_id, seq, tenant_id, doc, page, state, error_code, error_message, finished_at)
SELECT :job_id, seq + n - 1, :tenant_id, doc, page, CASE WHEN error_code IS NULL THEN 'pending' ELSE 'failed' END,
       error_code, error_message, CASE WHEN error_code IS NOT NULL THEN now() END
FROM plan_staging
    CROSS JOIN LATERAL unnest(coalesce(item_pages, ARRAY[CAST(NULL AS int)])) WITH ORDINALITY AS p(page, n)
WHERE seq IS NOT NULL
""")

_COUNT_FAILED = text("""
INSERT INTO job_deltas (job_id, failed, errors) VALUES (:job_id, :failed, CAST(:errors AS jsonb))
""")

# What moves is trusted again: a plan of hours survives more deaths of its workers than one that dies at one place.
_ADVANCE = text("""
UPDATE jobs SET item_count = :item_count, document_count = :document_count, plan_cursor = CAST(:cursor AS jsonb),
    plan_fails = 0, plan_losses = 0, plan_state = CASE WHEN :done THEN 'done' ELSE plan_state END,
    plan_lease_until = CASE WHEN :done THEN NULL ELSE now() + make_interval(secs => :lease) END
WHERE id = :job_id
""")

_FAIL = text("""
UPDATE jobs SET plan_state = 'failed', plan_lease_until = NULL, error_code = :code, error_message = :message
WHERE id = :job_id AND plan_state = 'leased' AND plan_attempt = :attempt
""")

_GIVE_BACK = text("""
UPDATE jobs SET plan_state = 'pending', plan_lease_until = NULL, plan_enqueued_at = NULL,
    plan_available_at = now() + make_interval(secs => :delay), plan_fails = plan_fails + :counted
WHERE id = :job_id AND plan_state = 'leased' AND plan_attempt = :attempt
""")

_HEARTBEAT = text("""
WITH held AS (SELECT * FROM unnest(CAST(:job_ids AS uuid[]), CAST(:attempts AS int[])) AS h(job_id, attempt)),
locked AS (
    SELECT j.id, j.plan_attempt FROM held JOIN jobs AS j ON j.id = held.job_id
    WHERE j.plan_state = 'leased' AND j.plan_attempt = held.attempt AND j.cancel_requested_at IS NULL
    ORDER BY j.id
    FOR NO KEY UPDATE OF j
)
UPDATE jobs SET plan_lease_until = now() + make_interval(secs => :lease)
FROM locked
WHERE jobs.id = locked.id AND jobs.plan_state = 'leased' AND jobs.plan_attempt = locked.plan_attempt
RETURNING jobs.id, jobs.plan_attempt
""")


@dataclass(frozen=True, kw_only=True)
class PlanLease:
    """A job's plan under a lease of ours. `attempt` is the fencing token, `cursor` where the listing goes on.

    `lease` in seconds: every chunk extends it by so much. The counts are what the job holds so far.
    """

    job_id: uuid.UUID
    attempt: int
    losses: int
    fails: int
    cursor: Mapping[str, Any] | None
    item_count: int
    document_count: int
    lease: float


@dataclass(frozen=True, kw_only=True)
class Single:
    """The document is one item: an image, a video, a set of chat media."""


@dataclass(frozen=True, kw_only=True)
class NeedsPaging:
    """The document becomes items when its pages have been counted."""


@dataclass(frozen=True, kw_only=True)
class SomePages:
    """The document has `of` pages, as an earlier job counted, and these (0-based) are items of this one."""

    pages: tuple[int, ...]
    of: int


@dataclass(frozen=True, kw_only=True)
class FailedAtPlan:
    """The document cannot be used; it becomes one failed item, so that the failure is seen and counted."""

    code: str
    message: str


@dataclass(frozen=True, kw_only=True)
class PlannedDocument:
    """An entry of the source as the plan hands it over; its number follows from its place."""

    name: str
    media: tuple[MediaRef, ...]
    overrides: JsonObject = field(default_factory=dict)
    metadata: JsonObject = field(default_factory=dict)
    items: Single | NeedsPaging | SomePages | FailedAtPlan = Single()


def claim_plan(conn: Connection, job_id: uuid.UUID, *, worker: str, lease: float) -> PlanLease | None:
    """Lease the plan for `lease` seconds; None where it is held, done, cancelled, past its deadline or not due yet."""
    planning = roll_up(plan=PlanState.LEASED, unplanned_documents=0, counts={}, cancel_requested=False)
    values = {"job_id": job_id, "worker": worker, "lease": lease, "state": str(planning)}
    row = conn.execute(_CLAIM, values).one_or_none()
    if row is None:
        return None
    if conn.execute(_CLAIMED_SNAPSHOT, {"job_id": job_id, "state": str(JobState(planning))}).rowcount:
        announce_progress(conn, job_id)
    return PlanLease(
        job_id=job_id,
        attempt=row.plan_attempt,
        losses=row.plan_losses,
        fails=row.plan_fails,
        cursor=row.plan_cursor,
        item_count=row.item_count,
        document_count=row.document_count,
        lease=lease,
    )


def append_plan(
    conn: Connection,
    lease: PlanLease,
    *,
    documents: Sequence[PlannedDocument],
    cursor: Mapping[str, Any] | None,
    done: bool,
) -> PlanLease | None:
    """Write one chunk and its cursor, in the caller's transaction, and extend the lease.

    The lease with its new counts and cursor; None where it was lost or the job cancelled: nothing was written, stop.
    """
    row = conn.execute(_LOCK, {"job_id": lease.job_id, "attempt": lease.attempt}).one_or_none()
    if row is None:
        return None
    item_count, document_count = row.item_count, row.document_count
    if documents:
        item_count = write_documents(
            conn, lease.job_id, row.tenant_id, documents, first_doc=document_count, first_seq=item_count
        )
        document_count += len(documents)
    values = {
        "job_id": lease.job_id,
        "item_count": item_count,
        "document_count": document_count,
        "cursor": None if cursor is None else to_json(cursor),
        "done": done,
        "lease": lease.lease,
    }
    conn.execute(_ADVANCE, values)
    wake(conn, Wake.PREPARE, Wake.PAGINATE, *((Wake.ENDED,) if done else ()))
    return replace(lease, cursor=cursor, item_count=item_count, document_count=document_count, fails=0, losses=0)


def fail_plan(conn: Connection, lease: PlanLease, *, code: str, message: str) -> bool:
    """End the plan: the job keeps what it has, and fails if that is nothing. False where the lease was lost."""
    values = {"job_id": lease.job_id, "attempt": lease.attempt, "code": code, "message": clean_text(message)}
    ended = conn.execute(_FAIL, values).rowcount == 1
    if ended:
        wake(conn, Wake.ENDED)
    return ended


def retry_plan(conn: Connection, lease: PlanLease, retry: Retry) -> bool:
    """Give the plan back for a later try, at its cursor. False where the lease was lost."""
    return _give_back(conn, lease, delay=retry.delay, counted=retry.counted)


def release_plan(conn: Connection, lease: PlanLease) -> bool:
    """Give the plan back untouched (shutdown). False where the lease was lost."""
    return _give_back(conn, lease, delay=0.0, counted=False)


def heartbeat_plans(
    conn: Connection, held: Sequence[tuple[uuid.UUID, int]], lease: float
) -> frozenset[tuple[uuid.UUID, int]]:
    """Extend the leases of `held` (job, attempt) by `lease` seconds; what is not returned was lost or cancelled."""
    values = {"job_ids": [job for job, _ in held], "attempts": [attempt for _, attempt in held], "lease": lease}
    return frozenset((row.id, row.plan_attempt) for row in conn.execute(_HEARTBEAT, values))


def _give_back(conn: Connection, lease: PlanLease, *, delay: float, counted: bool) -> bool:
    values = {"job_id": lease.job_id, "attempt": lease.attempt, "delay": delay, "counted": int(counted)}
    returned = conn.execute(_GIVE_BACK, values).rowcount == 1
    if returned:
        wake(conn, Wake.PLAN)
    return returned


def write_documents(
    conn: Connection,
    job_id: uuid.UUID,
    tenant_id: uuid.UUID,
    documents: Sequence[PlannedDocument],
    *,
    first_doc: int = 0,
    first_seq: int = 0,
) -> int:
    """COPY the documents into the staging table, insert them and their items from there; the next free seq.

    For whoever holds the job's row lock, or inserted the job in this transaction: numbers are not guarded here.
    """
    conn.exec_driver_sql(_STAGING)
    errors: Counter[str] = Counter()
    raw = conn.connection.driver_connection
    if not isinstance(raw, psycopg.Connection):
        raise TypeError("COPY needs psycopg 3")
    with raw.cursor() as cursor, cursor.copy(_COPY) as copy:
        next_seq = first_seq
        for row in _rows(documents, first_doc):
            seq = None
            if row[5] != PlanState.PENDING:
                seq, next_seq = next_seq, next_seq + (1 if row[7] is None else len(row[7]))
            if row[8] is not None:
                errors[row[8]] += 1
            copy.write_row((*row[:8], seq, *row[8:]))
    keys = {"job_id": job_id, "tenant_id": tenant_id}
    conn.execute(_INSERT_DOCUMENTS, keys)
    conn.execute(_INSERT_ITEMS, keys)
    if errors:
        conn.execute(_COUNT_FAILED, {"job_id": job_id, "failed": errors.total(), "errors": to_json(errors)})
    return next_seq


def _rows(documents: Sequence[PlannedDocument], first_doc: int) -> Iterable[tuple[Any, ...]]:
    """doc, name, media, overrides, metadata, state, its pages, the pages that are items, error code, error message."""
    for doc, document in enumerate(documents, first_doc):
        state, code, message = PlanState.DONE, None, None
        count: int | None = None
        pages: list[int] | None = None
        match document.items:
            case NeedsPaging():
                state = PlanState.PENDING
            case FailedAtPlan():
                state, code, message = PlanState.FAILED, document.items.code, clean_text(document.items.message)
            case SomePages():
                count, pages = document.items.of, list(document.items.pages)
            case Single():
                pass
        yield (
            doc,
            clean_text(document.name),
            to_json([media.to_json() for media in document.media]),
            to_json(document.overrides) if document.overrides else "{}",
            to_json(document.metadata) if document.metadata else "{}",
            str(state),
            count,
            pages,
            code,
            message,
        )
