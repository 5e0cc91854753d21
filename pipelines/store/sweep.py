"""What ends because time passed: lost leases, deadlines, cancelled jobs' leftovers; and jobs whose last item has ended.

Called by the leader alone, epoch checked, a bounded batch a call. A lost lease goes back one step and counts; the third
ends its item as `worker_lost`. Locked rows are skipped: their holder is alive, or they come up in the next sweep.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from dataclasses import dataclass

from sqlalchemy import Connection, text

from pipelines.jobs.errors import DeadlineExceeded, WorkerLost
from pipelines.store.deltas import ENDED
from pipelines.store.documents import fail_documents
from pipelines.store.values import Wake, wake

MAX_LOSSES = 3
"""The lease whose loss ends an item."""

_LOST_MESSAGE = "the worker that held it died, three times in a row; the input may be what kills it"
_DEADLINE_MESSAGE = "the job's deadline passed before this ran; submit it with a later deadline"

# The state left is in the WHERE: between the lock and now nobody else can have taken the row.
_ITEMS = text(
    """
WITH expired AS (
    SELECT i.job_id, i.seq, i.worker, j.cancel_requested_at IS NOT NULL AS cancelled,
        i.losses + 1 >= :max_losses AS lost
    FROM items AS i JOIN jobs AS j ON j.id = i.job_id
    WHERE i.state IN ('preparing', 'inferring') AND i.lease_until < now()
    ORDER BY i.job_id, i.seq
    LIMIT :limit
    FOR NO KEY UPDATE OF i SKIP LOCKED
),
ended AS (
    UPDATE items AS i SET
        state = CASE WHEN cancelled THEN 'cancelled' WHEN lost THEN 'failed'
            WHEN i.state = 'preparing' THEN 'pending' ELSE 'ready' END,
        losses = i.losses + 1, lease_until = NULL, enqueued_at = NULL, available_at = now(),
        finished_at = CASE WHEN cancelled OR lost THEN now() END,
        error_code = CASE WHEN lost AND NOT cancelled THEN :code ELSE i.error_code END,
        error_message = CASE WHEN lost AND NOT cancelled THEN :message ELSE i.error_message END
    FROM expired
    WHERE i.job_id = expired.job_id AND i.seq = expired.seq AND i.state IN ('preparing', 'inferring')
    RETURNING i.job_id, i.seq, i.state, i.error_code, i.losses, expired.worker
),
"""
    + ENDED
    + "SELECT job_id, seq, state, losses, worker FROM ended"
)

_DOCUMENTS = text("""
SELECT d.job_id, d.doc, d.attempt FROM documents AS d JOIN jobs AS j ON j.id = d.job_id
WHERE d.state = 'leased' AND d.lease_until < now() AND d.losses + 1 >= :max_losses AND j.cancel_requested_at IS NULL
LIMIT :limit
""")

# Of an ended or cancelled job nothing is paged any more.
_DOCUMENTS_BACK = text("""
WITH expired AS (
    SELECT d.job_id, d.doc, j.cancel_requested_at IS NOT NULL OR j.finished_at IS NOT NULL AS over
    FROM documents AS d JOIN jobs AS j ON j.id = d.job_id
    WHERE d.state = 'leased' AND d.lease_until < now()
      AND (d.losses + 1 < :max_losses OR j.cancel_requested_at IS NOT NULL OR j.finished_at IS NOT NULL)
    LIMIT :limit
    FOR NO KEY UPDATE OF d SKIP LOCKED
)
UPDATE documents AS d SET state = CASE WHEN over THEN 'failed' ELSE 'pending' END, losses = d.losses + 1,
    lease_until = NULL, worker = NULL, enqueued_at = NULL, available_at = now()
FROM expired
WHERE d.job_id = expired.job_id AND d.doc = expired.doc AND d.state = 'leased'
""")

_PLANS = text("""
WITH expired AS (
    SELECT id, plan_losses + 1 >= :max_losses AS lost FROM jobs
    WHERE state IN ('queued', 'planning', 'running') AND plan_state = 'leased' AND plan_lease_until < now()
    FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE jobs SET plan_state = CASE WHEN lost THEN 'failed' ELSE 'pending' END, plan_losses = plan_losses + 1,
    plan_lease_until = NULL, plan_enqueued_at = NULL, plan_available_at = now(),
    error_code = CASE WHEN lost THEN :code ELSE error_code END,
    error_message = CASE WHEN lost THEN :message ELSE error_message END
FROM expired
WHERE jobs.id = expired.id AND jobs.plan_state = 'leased'
""")

_PAST_DEADLINE = text("""
SELECT id FROM jobs
WHERE state IN ('queued', 'planning', 'running') AND deadline_at < now() AND cancel_requested_at IS NULL
""")
_CANCELLING = text("""
SELECT id FROM jobs WHERE state IN ('queued', 'planning', 'running') AND cancel_requested_at IS NOT NULL
""")

_END_PLAN = text("""
UPDATE jobs SET plan_state = 'failed', plan_lease_until = NULL, plan_enqueued_at = NULL,
    error_code = :code, error_message = :message
WHERE id = :job_id AND plan_state IN ('pending', 'leased')
""")

_WAITING_DOCUMENTS = text("""
(SELECT doc, attempt FROM documents
 WHERE job_id = :job_id AND state = 'pending' AND enqueued_at IS NULL ORDER BY doc LIMIT :limit)
UNION ALL
(SELECT doc, attempt FROM documents
 WHERE job_id = :job_id AND state = 'pending' AND enqueued_at IS NOT NULL LIMIT :limit)
LIMIT :limit
""")

_WAITING = (
    "state = 'pending' AND enqueued_at IS NULL",
    "state = 'ready' AND enqueued_at IS NULL",
    "state IN ('pending', 'ready') AND enqueued_at IS NOT NULL",
)
"""The partial indexes, one at a time: together they hold every waiting item, and none that has ended."""

_END_ITEMS = """
WITH picked AS (
    SELECT job_id, seq FROM items
    WHERE job_id = :job_id AND {waiting}
    ORDER BY seq
    LIMIT :limit
    FOR NO KEY UPDATE SKIP LOCKED
),
ended AS (
    UPDATE items AS i SET state = :state, finished_at = now(), enqueued_at = NULL,
        error_code = coalesce(:code, i.error_code), error_message = coalesce(:message, i.error_message)
    FROM picked
    WHERE i.job_id = picked.job_id AND i.seq = picked.seq AND i.state IN ('pending', 'ready')
    RETURNING i.job_id, i.state, i.error_code
),
"""

_END_WAITING = tuple(
    text(_END_ITEMS.format(waiting=waiting) + ENDED + "SELECT count(*) FROM ended") for waiting in _WAITING
)

_CANCEL_DOCUMENTS = tuple(
    text(f"""
WITH picked AS (
    SELECT job_id, doc FROM documents WHERE job_id = :job_id AND {waiting} LIMIT :limit
    FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE documents AS d SET state = 'failed', lease_until = NULL, worker = NULL, enqueued_at = NULL
FROM picked WHERE d.job_id = picked.job_id AND d.doc = picked.doc AND d.state IN ('pending', 'leased')
""")
    for waiting in (
        "state = 'pending' AND enqueued_at IS NULL",
        "state = 'pending' AND enqueued_at IS NOT NULL",
        "state = 'leased'",
    )
)


@dataclass(frozen=True, kw_only=True)
class LostLease:
    """One item's lease that expired: what became of it, whose it was, how many it has lost."""

    job_id: uuid.UUID
    seq: int
    state: str
    losses: int
    worker: str | None


def expire_items(conn: Connection, *, limit: int = 1000) -> tuple[LostLease, ...]:
    """Send items of expired leases back one step, or end them: the third loss fails, a cancelled job's is cancelled."""
    values = {"limit": limit, "max_losses": MAX_LOSSES, "code": WorkerLost.code, "message": _LOST_MESSAGE}
    lost = tuple(
        LostLease(job_id=row.job_id, seq=row.seq, state=row.state, losses=row.losses, worker=row.worker)
        for row in conn.execute(_ITEMS, values)
    )
    if lost:
        wake(conn, Wake.PREPARE, Wake.INFER, Wake.ENDED)
    return lost


def expire_documents(conn: Connection, *, limit: int = 1000) -> int:
    """The same for documents that are being paged; how many leases that were."""
    by_job: defaultdict[uuid.UUID, list[tuple[int, int]]] = defaultdict(list)
    for row in conn.execute(_DOCUMENTS, {"limit": limit, "max_losses": MAX_LOSSES}):
        by_job[row.job_id].append((row.doc, row.attempt))
    swept = sum(
        fail_documents(conn, job_id, held, code=WorkerLost.code, message=_LOST_MESSAGE, states=("leased",))
        for job_id, held in sorted(by_job.items())
    )
    swept += conn.execute(_DOCUMENTS_BACK, {"limit": limit, "max_losses": MAX_LOSSES}).rowcount
    if swept:
        wake(conn, Wake.PAGINATE)
    return swept


def expire_plans(conn: Connection) -> int:
    """The same for plans; how many leases that were."""
    values = {"max_losses": MAX_LOSSES, "code": WorkerLost.code, "message": _LOST_MESSAGE}
    swept = conn.execute(_PLANS, values).rowcount
    if swept:
        wake(conn, Wake.PLAN, Wake.ENDED)
    return swept


def past_deadline(conn: Connection) -> tuple[uuid.UUID, ...]:
    """Jobs that run past their deadline."""
    return tuple(conn.execute(_PAST_DEADLINE).scalars())


def cancelling(conn: Connection) -> tuple[uuid.UUID, ...]:
    """Jobs that were cancelled and have not ended."""
    return tuple(conn.execute(_CANCELLING).scalars())


def end_overdue(conn: Connection, job_id: uuid.UUID, *, limit: int = 5000) -> int:
    """Fail what waits in a job past its deadline, at most `limit` rows a sort; how many. What runs may finish."""
    keys = {"job_id": job_id, "code": DeadlineExceeded.code, "message": _DEADLINE_MESSAGE}
    ended = conn.execute(_END_PLAN, keys).rowcount
    waiting = [(row.doc, row.attempt) for row in conn.execute(_WAITING_DOCUMENTS, {"job_id": job_id, "limit": limit})]
    if waiting:
        ended += fail_documents(
            conn, job_id, waiting, code=DeadlineExceeded.code, message=_DEADLINE_MESSAGE, states=("pending",)
        )
    for statement in _END_WAITING:
        ended += conn.execute(statement, {**keys, "state": "failed", "limit": limit}).scalar_one()
    if ended:
        wake(conn, Wake.ENDED)
    return ended


def cancel_waiting(conn: Connection, job_id: uuid.UUID, *, limit: int = 5000) -> int:
    """Cancel what waits in a cancelled job, at most `limit` rows a sort; how many. What runs hears of it itself."""
    ended = 0
    for statement in _CANCEL_DOCUMENTS:
        ended += conn.execute(statement, {"job_id": job_id, "limit": limit}).rowcount
    values = {"job_id": job_id, "state": "cancelled", "code": None, "message": None, "limit": limit}
    for statement in _END_WAITING:
        ended += conn.execute(statement, values).scalar_one()
    if ended:
        wake(conn, Wake.ENDED)
    return ended
