"""The history of schedules: every time that was due, or asked for, and what became of it."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Row, text

from pipelines.jobs.ids import uuid7_floor
from pipelines.jobs.schedules import RunState, RunTrigger, ScheduleRun
from pipelines.jobs.states import JobState
from pipelines.store.values import clean_text

# A time of the cron that is there already was fired by somebody else: nothing is written.
_INSERT = text("""
INSERT INTO schedule_runs (id, schedule_id, tenant_id, trigger, scheduled_at, state, only_new, job_id,
    error_code, error_message)
VALUES (:id, :schedule_id, :tenant_id, :trigger, :scheduled_at, :state, :only_new, :job_id, :code, :message)
ON CONFLICT (schedule_id, scheduled_at) WHERE trigger = 'cron' DO NOTHING
""")

_LINK = text("UPDATE jobs SET schedule_id = :schedule_id, schedule_run_id = :run_id WHERE id = :job_id")

# Redrives are no runs: they finish what a run left, beside the next one.
_ACTIVE = text("""
SELECT id FROM jobs
WHERE schedule_id = :schedule_id AND state IN ('queued', 'planning', 'running') AND parent_id IS NULL
  AND cancel_requested_at IS NULL
ORDER BY id
""")

_RUN = """
SELECT r.*, p.state AS job_state FROM schedule_runs AS r LEFT JOIN job_progress AS p ON p.job_id = r.job_id
"""
_GET = text(_RUN + "WHERE r.id = :id AND r.tenant_id = :tenant_id")
_LIST = text(
    _RUN
    + """
WHERE r.schedule_id = :schedule_id AND r.tenant_id = :tenant_id
  AND (CAST(:before AS uuid) IS NULL OR r.id < CAST(:before AS uuid))
  AND (CAST(:states AS text[]) IS NULL OR r.state = ANY(CAST(:states AS text[])))
ORDER BY r.id DESC
LIMIT :limit
"""
)
_LAST = text(
    """
SELECT run.* FROM unnest(CAST(:schedule_ids AS uuid[])) AS s(id)
CROSS JOIN LATERAL ("""
    + _RUN
    + """WHERE r.schedule_id = s.id ORDER BY r.id DESC LIMIT 1) AS run
"""
)

# The newest of a schedule stays, however old: it says when the schedule last did something.
_EXPIRE = text("""
DELETE FROM schedule_runs WHERE id IN (
    SELECT r.id FROM schedule_runs AS r
    WHERE r.id < :floor
      AND EXISTS (SELECT 1 FROM schedule_runs AS n WHERE n.schedule_id = r.schedule_id AND n.id > r.id)
      AND NOT EXISTS (SELECT 1 FROM jobs AS j WHERE j.id = r.job_id AND j.objects_recorded_at IS NULL)
    ORDER BY r.id
    LIMIT :limit)
""")


@dataclass(frozen=True, kw_only=True)
class NewRun:
    """A run to be written. `state` fired: `job_id` is the job's, which is made in the same transaction."""

    run_id: uuid.UUID
    schedule_id: uuid.UUID
    tenant_id: uuid.UUID
    trigger: RunTrigger
    scheduled_at: datetime
    state: RunState
    only_new: bool
    job_id: uuid.UUID | None = None
    code: str | None = None
    message: str | None = None


def insert(conn: Connection, new: NewRun) -> bool:
    """Write a run; False where this time of the schedule stands in the history already."""
    values = {
        "id": new.run_id,
        "schedule_id": new.schedule_id,
        "tenant_id": new.tenant_id,
        "trigger": str(new.trigger),
        "scheduled_at": new.scheduled_at,
        "state": str(new.state),
        "only_new": new.only_new,
        "job_id": new.job_id,
        "code": new.code,
        "message": None if new.message is None else clean_text(new.message),
    }
    return conn.execute(_INSERT, values).rowcount == 1


def link(conn: Connection, *, schedule_id: uuid.UUID, run_id: uuid.UUID, job_id: uuid.UUID) -> None:
    """The job is the run's. In the transaction that made both, so nobody has seen it without."""
    conn.execute(_LINK, {"schedule_id": schedule_id, "run_id": run_id, "job_id": job_id})


def active_jobs(conn: Connection, schedule_id: uuid.UUID) -> tuple[uuid.UUID, ...]:
    """Jobs of earlier runs that have not ended and are not being cancelled."""
    return tuple(conn.execute(_ACTIVE, {"schedule_id": schedule_id}).scalars())


def get(conn: Connection, tenant_id: uuid.UUID, run_id: uuid.UUID) -> ScheduleRun | None:
    """The tenant's run."""
    row = conn.execute(_GET, {"id": run_id, "tenant_id": tenant_id}).one_or_none()
    return None if row is None else _run(row)


def list_runs(
    conn: Connection,
    tenant_id: uuid.UUID,
    schedule_id: uuid.UUID,
    *,
    limit: int,
    before: uuid.UUID | None = None,
    states: Sequence[RunState] | None = None,
) -> tuple[ScheduleRun, ...]:
    """A schedule's runs, newest first, at most `limit`; `before` is the last id of the page before."""
    values = {
        "tenant_id": tenant_id,
        "schedule_id": schedule_id,
        "limit": limit,
        "before": before,
        "states": None if states is None else [str(state) for state in states],
    }
    return tuple(_run(row) for row in conn.execute(_LIST, values))


def last_runs(conn: Connection, schedule_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, ScheduleRun]:
    """The newest run of each schedule that has one. The caller has found the schedules under their tenant."""
    rows = conn.execute(_LAST, {"schedule_ids": list(schedule_ids)})
    return {row.schedule_id: _run(row) for row in rows}


def expire(conn: Connection, *, before: datetime, limit: int = 1000) -> int:
    """Forget runs from before then, at most `limit`, but the newest of each schedule; how many."""
    return conn.execute(_EXPIRE, {"floor": uuid7_floor(before), "limit": limit}).rowcount


def _run(row: Row[tuple[object, ...]]) -> ScheduleRun:
    return ScheduleRun(
        run_id=row.id,
        schedule_id=row.schedule_id,
        trigger=RunTrigger(row.trigger),
        scheduled_at=row.scheduled_at,
        fired_at=row.fired_at,
        state=RunState(row.state),
        only_new=row.only_new,
        job_id=row.job_id,
        job_state=None if row.job_state is None else JobState(row.job_state),
        error_code=row.error_code,
        error_message=row.error_message,
    )
