"""Jobs that do not move: something of them could be claimed, nothing of them is claimed, and nobody is before them.

A job that waits its turn is not stuck: one of a better priority moves, or an earlier one of its tenant (the order of
`pipelines.store.dispatch`). Nor is one whose items are held by a worker, for their leases are renewed, nor one that
waits for the pause before a retry to pass.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text

# `updated_at` of the snapshot is when the job's counts last changed; a job without a change shows no sign of life.
_STUCK = text("""
WITH silent AS (
    SELECT j.id, j.tenant_id, j.priority, j.plan_state, j.plan_available_at, p.updated_at
    FROM jobs AS j JOIN job_progress AS p ON p.job_id = j.id
    WHERE j.state IN ('queued', 'planning', 'running') AND j.cancel_requested_at IS NULL
      AND (j.deadline_at IS NULL OR j.deadline_at > now())
      AND p.updated_at < now() - make_interval(secs => :after)
),
waiting AS (
    SELECT silent.*, CASE
        WHEN plan_state = 'pending' AND plan_available_at <= now() THEN 'plan'
        WHEN EXISTS (SELECT 1 FROM documents AS d WHERE d.job_id = silent.id AND d.state = 'pending'
                     AND d.enqueued_at IS NULL AND d.available_at <= now()) THEN 'paginate'
        WHEN EXISTS (SELECT 1 FROM documents AS d WHERE d.job_id = silent.id AND d.state = 'pending'
                     AND d.enqueued_at IS NOT NULL) THEN 'paginate'
        WHEN EXISTS (SELECT 1 FROM items AS i WHERE i.job_id = silent.id AND i.state = 'pending'
                     AND i.enqueued_at IS NULL AND i.available_at <= now()) THEN 'prepare'
        WHEN EXISTS (SELECT 1 FROM items AS i WHERE i.job_id = silent.id AND i.state IN ('pending', 'ready')
                     AND i.enqueued_at IS NOT NULL AND i.state = 'pending') THEN 'prepare'
        WHEN EXISTS (SELECT 1 FROM items AS i WHERE i.job_id = silent.id AND i.state = 'ready'
                     AND i.enqueued_at IS NULL AND i.available_at <= now()) THEN 'infer'
        WHEN EXISTS (SELECT 1 FROM items AS i WHERE i.job_id = silent.id AND i.state IN ('pending', 'ready')
                     AND i.enqueued_at IS NOT NULL) THEN 'infer'
    END AS stage
    FROM silent
    WHERE plan_state <> 'leased'
      AND NOT EXISTS (SELECT 1 FROM documents AS d WHERE d.job_id = silent.id AND d.state = 'leased')
      AND NOT EXISTS (SELECT 1 FROM items AS i WHERE i.job_id = silent.id AND i.state IN ('preparing', 'inferring'))
)
SELECT id, tenant_id, stage, updated_at FROM waiting
WHERE stage IS NOT NULL AND NOT EXISTS (
    SELECT 1 FROM jobs AS before JOIN job_progress AS p ON p.job_id = before.id
    WHERE before.state IN ('queued', 'planning', 'running') AND p.updated_at >= now() - make_interval(secs => :after)
      AND (before.priority < waiting.priority
           OR before.priority = waiting.priority AND before.tenant_id = waiting.tenant_id AND before.id < waiting.id)
)
ORDER BY id
""")


@dataclass(frozen=True, kw_only=True)
class StuckJob:
    """A job, the stage that it could be claimed for, and when it last changed."""

    job_id: uuid.UUID
    tenant_id: uuid.UUID
    stage: str
    since: datetime


def stuck_jobs(conn: Connection, *, after: float) -> tuple[StuckJob, ...]:
    """Jobs without any progress for `after` seconds although they have claimable work and their turn has come."""
    rows = conn.execute(_STUCK, {"after": after})
    return tuple(
        StuckJob(job_id=row.id, tenant_id=row.tenant_id, stage=row.stage, since=row.updated_at) for row in rows
    )
