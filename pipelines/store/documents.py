"""Documents that wait for their pages to be counted: claimed, kept, turned into items.

A document's pages become items in one statement with its own end, numbered from the job's counter under the job's row
lock, and fenced by the document's attempt: a document is paged exactly once.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from pipelines.jobs.models import Document, MediaRef
from pipelines.jobs.outcomes import Retry
from pipelines.store.deltas import ENDED
from pipelines.store.items import Beat
from pipelines.store.values import Wake, clean_text, to_json, wake

_CLAIM = text("""
WITH picked AS (
    SELECT d.job_id, d.doc
    FROM documents AS d JOIN jobs AS j ON j.id = d.job_id
    WHERE d.job_id = :job_id AND d.doc = ANY(CAST(:docs AS bigint[])) AND d.state = 'pending'
      AND d.available_at <= now() AND (d.losses = 0 OR d.enqueued_at IS NOT NULL)
      AND j.cancel_requested_at IS NULL AND (j.deadline_at IS NULL OR j.deadline_at > now())
    ORDER BY d.doc
    FOR NO KEY UPDATE OF d SKIP LOCKED
)
UPDATE documents AS d SET state = 'leased', attempt = d.attempt + 1, worker = :worker, enqueued_at = NULL,
    lease_until = now() + make_interval(secs => :lease)
FROM picked
WHERE d.job_id = picked.job_id AND d.doc = picked.doc AND d.state = 'pending'
RETURNING d.job_id, d.doc, d.attempt, d.losses, d.fails, d.name, d.media, d.overrides, d.metadata
""")

# One statement: the document ends, its items exist, the job's counter has moved. `pages` null: one item, page null.
_COMPLETE = text("""
WITH job AS (
    SELECT id, tenant_id, item_count FROM jobs
    WHERE id = :job_id AND cancel_requested_at IS NULL AND state IN ('queued', 'planning', 'running')
    FOR NO KEY UPDATE
),
done AS (
    UPDATE documents AS d SET state = 'done', lease_until = NULL, worker = NULL, pages = CAST(:pages AS int), media = (
        SELECT coalesce(jsonb_agg(
            CASE WHEN medium->>'version' IS NULL
                THEN medium || jsonb_build_object('version', CAST(:versions AS jsonb)->(CAST(n AS int) - 1))
                ELSE medium END
            ORDER BY n), '[]')
        FROM jsonb_array_elements(d.media) WITH ORDINALITY AS m(medium, n)
    )
    FROM job
    WHERE d.job_id = :job_id AND d.doc = :doc AND d.state = 'leased' AND d.attempt = :attempt
    RETURNING d.doc
),
added AS (
    INSERT INTO items (job_id, seq, tenant_id, doc, page)
    SELECT job.id, job.item_count + page, job.tenant_id, done.doc,
        CASE WHEN CAST(:pages AS int) IS NOT NULL THEN page END
    FROM job, done, generate_series(0, CAST(:items AS int) - 1) AS page
)
UPDATE jobs SET item_count = jobs.item_count + CAST(:items AS int) FROM done WHERE jobs.id = :job_id
RETURNING jobs.id
""")

# Each document that fails becomes one failed item.
_FAIL = text(
    """
WITH job AS (
    SELECT id, tenant_id, item_count FROM jobs
    WHERE id = :job_id AND cancel_requested_at IS NULL AND state IN ('queued', 'planning', 'running')
    FOR NO KEY UPDATE
),
entry AS (
    SELECT * FROM unnest(CAST(:docs AS bigint[]), CAST(:attempts AS int[])) AS e(doc, attempt)
),
locked AS (
    SELECT d.doc, d.attempt
    FROM job JOIN documents AS d ON d.job_id = :job_id JOIN entry ON entry.doc = d.doc AND entry.attempt = d.attempt
    WHERE d.state = ANY(CAST(:states AS text[]))
    ORDER BY d.doc
    FOR NO KEY UPDATE OF d
),
gone AS (
    UPDATE documents AS d SET state = 'failed', lease_until = NULL, worker = NULL, enqueued_at = NULL
    FROM locked
    WHERE d.job_id = :job_id AND d.doc = locked.doc AND d.attempt = locked.attempt
      AND d.state = ANY(CAST(:states AS text[]))
    RETURNING d.doc, d.attempt
),
ended AS (
    INSERT INTO items (job_id, seq, tenant_id, doc, state, finished_at, error_code, error_message)
    SELECT job.id, job.item_count + row_number() OVER (ORDER BY gone.doc) - 1, job.tenant_id, gone.doc,
        'failed', now(), :code, :message
    FROM job, gone
    RETURNING job_id, state, error_code
),
"""
    + ENDED
    + """,
moved AS (
    UPDATE jobs SET item_count = jobs.item_count + (SELECT count(*) FROM gone)
    WHERE jobs.id = :job_id AND EXISTS (SELECT 1 FROM gone)
)
SELECT doc, attempt FROM gone
"""
)

_GIVE_BACK = text("""
UPDATE documents SET state = 'pending', lease_until = NULL, worker = NULL, enqueued_at = NULL,
    available_at = now() + make_interval(secs => :delay), fails = fails + :counted
WHERE job_id = :job_id AND doc = :doc AND state = 'leased' AND attempt = :attempt
""")

_HEARTBEAT = text("""
WITH held AS (
    SELECT * FROM unnest(CAST(:job_ids AS uuid[]), CAST(:docs AS bigint[]), CAST(:attempts AS int[]))
        AS h(job_id, doc, attempt)
),
locked AS (
    SELECT d.job_id, d.doc, d.attempt, j.cancel_requested_at IS NOT NULL AS cancelled
    FROM held JOIN documents AS d ON d.job_id = held.job_id AND d.doc = held.doc JOIN jobs AS j ON j.id = d.job_id
    WHERE d.attempt = held.attempt AND d.state = 'leased'
    ORDER BY d.job_id, d.doc
    FOR NO KEY UPDATE OF d
)
UPDATE documents AS d SET lease_until = now() + make_interval(secs => :lease)
FROM locked
WHERE d.job_id = locked.job_id AND d.doc = locked.doc AND d.attempt = locked.attempt AND d.state = 'leased'
RETURNING d.job_id, d.doc, d.attempt, locked.cancelled
""")


@dataclass(frozen=True, kw_only=True)
class ClaimedDocument:
    """A document under a lease of ours. `attempt` is the fencing token."""

    job_id: uuid.UUID
    doc: int
    attempt: int
    losses: int
    fails: int
    document: Document


def claim_documents(
    conn: Connection, job_id: uuid.UUID, docs: Sequence[int], *, worker: str, lease: float
) -> tuple[ClaimedDocument, ...]:
    """Lease those of the job's documents that wait for their pages, for `lease` seconds, in order."""
    values = {"job_id": job_id, "docs": list(docs), "worker": worker, "lease": lease}
    claimed = (
        ClaimedDocument(
            job_id=row.job_id,
            doc=row.doc,
            attempt=row.attempt,
            losses=row.losses,
            fails=row.fails,
            document=Document(
                job_id=row.job_id,
                doc=row.doc,
                name=row.name,
                media=tuple(MediaRef.from_json(medium) for medium in row.media),
                overrides=row.overrides,
                metadata=row.metadata,
            ),
        )
        for row in conn.execute(_CLAIM, values)
    )
    return tuple(sorted(claimed, key=lambda document: document.doc))


def complete_document(
    conn: Connection, claimed: ClaimedDocument, *, pages: int | None, versions: Sequence[str | None] = ()
) -> bool:
    """End the document with `pages` items (page 0 to pages - 1), or with one item of no page where `pages` is None.

    `versions`: what was really read of each medium, pinned where the plan knew none. False where the lease was lost or
    the job cancelled; nothing was written then. Raises `ValueError` for less than one page.
    """
    if pages is not None and pages < 1:
        raise ValueError("a document without pages fails; it is not completed")
    values = {
        **_key(claimed),
        "pages": pages,
        "items": 1 if pages is None else pages,
        "versions": to_json(list(versions)),
    }
    done = conn.execute(_COMPLETE, values).one_or_none() is not None
    if done:
        wake(conn, Wake.PREPARE)
    return done


def fail_document(conn: Connection, claimed: ClaimedDocument, *, code: str, message: str) -> bool:
    """End the document with one failed item. False where the lease was lost or the job cancelled."""
    held = [(claimed.doc, claimed.attempt)]
    return bool(fail_documents(conn, claimed.job_id, held, code=code, message=message, states=("leased",)))


def fail_documents(
    conn: Connection,
    job_id: uuid.UUID,
    held: Sequence[tuple[int, int]],
    *,
    code: str,
    message: str,
    states: Sequence[str],
) -> int:
    """End documents of one job, given as (doc, attempt) and being in one of `states`, with one failed item each."""
    values = {
        "job_id": job_id,
        "docs": [doc for doc, _ in held],
        "attempts": [attempt for _, attempt in held],
        "states": list(states),
        "code": code,
        "message": clean_text(message),
    }
    failed = len(conn.execute(_FAIL, values).all())
    if failed:
        wake(conn, Wake.ENDED)
    return failed


def retry_document(conn: Connection, claimed: ClaimedDocument, retry: Retry) -> bool:
    """Give the document back for a later try. False where the lease was lost."""
    return _give_back(conn, claimed, delay=retry.delay, counted=retry.counted)


def release_document(conn: Connection, claimed: ClaimedDocument) -> bool:
    """Give the document back untouched (shutdown). False where the lease was lost."""
    return _give_back(conn, claimed, delay=0.0, counted=False)


def heartbeat(conn: Connection, held: Sequence[tuple[uuid.UUID, int, int]], *, lease: float) -> Beat:
    """Extend the leases of `held` (job, doc, attempt) by `lease` seconds, as `items.heartbeat` does for items."""
    values = {
        "job_ids": [job for job, _, _ in held],
        "docs": [doc for _, doc, _ in held],
        "attempts": [attempt for _, _, attempt in held],
        "lease": lease,
    }
    rows = conn.execute(_HEARTBEAT, values).all()
    return Beat(
        kept=frozenset((row.job_id, row.doc, row.attempt) for row in rows),
        cancelled=frozenset((row.job_id, row.doc, row.attempt) for row in rows if row.cancelled),
    )


def _give_back(conn: Connection, claimed: ClaimedDocument, *, delay: float, counted: bool) -> bool:
    values = {**_key(claimed), "delay": delay, "counted": int(counted)}
    returned = conn.execute(_GIVE_BACK, values).rowcount == 1
    if returned:
        wake(conn, Wake.PAGINATE)
    return returned


def _key(claimed: ClaimedDocument) -> dict[str, object]:
    return {"job_id": claimed.job_id, "doc": claimed.doc, "attempt": claimed.attempt}
