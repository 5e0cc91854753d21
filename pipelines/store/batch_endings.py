"""Batches that have ended and whose output files are not written yet: claimed, renewed, released like any work.

The row is written with the job's end. Whoever writes the files deletes it, which sends the batch's event; both are one
transaction, so no subscriber hears of a batch before its files are there.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from pipelines.store import webhook_events

_CLAIM = text("""
UPDATE batch_endings SET attempt = attempt + 1, lease_until = now() + make_interval(secs => :lease)
WHERE job_id = (
    SELECT job_id FROM batch_endings WHERE lease_until IS NULL OR lease_until < now()
    ORDER BY attempt, job_id LIMIT 1 FOR UPDATE SKIP LOCKED
)
RETURNING job_id, tenant_id, attempt
""")
_RENEW = text("""
UPDATE batch_endings SET lease_until = now() + make_interval(secs => :lease)
WHERE job_id = :job_id AND attempt = :attempt
""")
_RELEASE = text("DELETE FROM batch_endings WHERE job_id = :job_id AND attempt = :attempt RETURNING event_id")
_UNWRITTEN = text("SELECT job_id FROM batch_endings WHERE job_id = ANY(CAST(:job_ids AS uuid[]))")


@dataclass(frozen=True, kw_only=True)
class BatchEnding:
    """A batch whose files are to be written, under a lease. `attempt` is the fencing token."""

    job_id: uuid.UUID
    tenant_id: uuid.UUID
    attempt: int


def claim(conn: Connection, *, lease: float) -> BatchEnding | None:
    """Lease one for `lease` seconds, those first that were tried least; None where none waits."""
    row = conn.execute(_CLAIM, {"lease": lease}).one_or_none()
    return None if row is None else BatchEnding(job_id=row.job_id, tenant_id=row.tenant_id, attempt=row.attempt)


def renew(conn: Connection, ending: BatchEnding, *, lease: float) -> bool:
    """Keep it for another while; False where somebody else has it or has finished it."""
    values = {"job_id": ending.job_id, "attempt": ending.attempt, "lease": lease}
    return conn.execute(_RENEW, values).rowcount == 1


def release(conn: Connection, ending: BatchEnding) -> bool:
    """The files are written: forget it and send its event. False where somebody else has it or has finished it."""
    row = conn.execute(_RELEASE, {"job_id": ending.job_id, "attempt": ending.attempt}).one_or_none()
    if row is None:
        return False
    if row.event_id is not None:
        webhook_events.fan_out(conn, row.event_id)
    return True


def unwritten(conn: Connection, job_ids: Sequence[uuid.UUID]) -> frozenset[uuid.UUID]:
    """Those of the jobs whose files are still to be written."""
    return frozenset(conn.execute(_UNWRITTEN, {"job_ids": list(job_ids)}).scalars())
