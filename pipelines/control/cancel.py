"""Cancel a job: what waits ends now, what runs is told.

The request is one row. A first batch of waiting items ends in the same transaction, so a small job is cancelled when
the answer goes out; the leader ends the rest, batch by batch. Running items hear of it by a hint over Redis
(`HINT_CHANNEL`, sent by the caller after the commit), or at their next heartbeat.
"""

from __future__ import annotations

import uuid

from sqlalchemy import Connection, text

from pipelines.jobs.errors import JobNotCancellable, NotFound
from pipelines.store import progress, sweep
from pipelines.store.values import Wake, wake

HINT_CHANNEL = "batchsight:cancel"

BATCH = 5_000

_REQUEST = text("""
UPDATE jobs SET cancel_requested_at = now()
WHERE id = :job_id AND tenant_id = :tenant_id AND state IN ('queued', 'planning', 'running')
  AND cancel_requested_at IS NULL
""")
_STATE = text("SELECT state, finished_at FROM jobs WHERE id = :job_id AND tenant_id = :tenant_id")


def request(conn: Connection, tenant_id: uuid.UUID, job_id: uuid.UUID) -> None:
    """Cancel the tenant's job; a second request changes nothing. The caller's transaction commits.

    Raises `NotFound`, or `JobNotCancellable` where the job has ended.
    """
    keys = {"job_id": job_id, "tenant_id": tenant_id}
    if conn.execute(_REQUEST, keys).rowcount == 0:
        row = conn.execute(_STATE, keys).one_or_none()
        if row is None:
            raise NotFound("there is no job of this id")
        if row.finished_at is not None:
            raise JobNotCancellable(f"the job has ended already ({row.state})")
        return
    sweep.cancel_waiting(conn, job_id, limit=BATCH)
    if progress.finished_jobs(conn, job_ids=[job_id]):
        progress.finalise(conn, job_id)
    else:
        progress.bump(conn, job_id)
    wake(conn, Wake.CANCEL)
