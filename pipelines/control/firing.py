"""Schedules that are due are fired: each run and its job are inserted in one transaction, so once, and surely.

A due schedule's row is locked, its due times are sorted out (`control.cron`), and the time it is due next is moved on,
all in the transaction that inserts the runs. A leader that dies before the commit has done nothing, and the times are
still due; one that comes second finds them moved on; a unique index on (schedule, scheduled time) stands behind both.

A job that is refused (quota, a template that is valid no more) is a failed run in the history, and the next time is
tried as if nothing had been. A time that was missed and is made up for waits until the run before has ended, where
`overlap` is `skip`: it would be no use to catch up by skipping.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from pipelines.control import cancel
from pipelines.control.cron import MissedRule, due_until, sort_out, timing
from pipelines.control.template import JobTemplate
from pipelines.jobs.errors import BatchsightError, InternalError, InvalidParameter, NotFound, ServiceUnavailable
from pipelines.jobs.ids import uuid7
from pipelines.jobs.schedules import Overlap, RunState, RunTrigger, Schedule
from pipelines.steps.submit import SubmitRules, submit
from pipelines.store import leader, schedule_objects, schedule_runs, schedules, tenants
from pipelines.store.leader import Epoch
from pipelines.store.schedule_runs import NewRun
from pipelines.store.session import Database

_log = structlog.get_logger(__name__)

_WINDOWS = 20
"""Windows of items recorded a call: due schedules wait no longer than that."""


@dataclass(frozen=True, kw_only=True)
class Fired:
    """What a call did: runs by what became of them, and jobs that were cancelled for newer ones."""

    runs: Mapping[RunState, int]
    cancelled: tuple[uuid.UUID, ...] = ()


class Scheduler:
    """Called by one thread of the leader, every second. Every transaction checks the epoch."""

    def __init__(self, database: Database, rules: SubmitRules) -> None:
        self._database = database
        self._rules = rules
        self._recorded_to: dict[uuid.UUID, int] = {}

    def fire(self, epoch: Epoch, *, now: datetime | None = None) -> Fired:
        """Fire every schedule that is due at `now` (PostgreSQL's own time unless given). Raises `LeaderLost`."""
        with self._database.begin() as conn:
            leader.check(conn, epoch)
            at = now or schedules.now(conn)
            due = schedules.due(conn, at)
        runs: Counter[RunState] = Counter()
        cancelled: list[uuid.UUID] = []
        for schedule_id in due:
            with self._database.begin() as conn:
                leader.check(conn, epoch)
                fired = fire_one(conn, schedule_id, at, self._rules)
            runs.update(fired.runs)
            cancelled += fired.cancelled
        return Fired(runs=runs, cancelled=tuple(cancelled))

    def record(self, epoch: Epoch) -> int:
        """Write down which objects ended jobs have done, some windows a call; how many jobs are done with.

        A crash loses no more than the place where it was; writing a window twice changes nothing.
        """
        windows = ended = 0
        with self._database.begin() as conn:
            leader.check(conn, epoch)
            jobs = schedule_objects.ended_unrecorded(conn)
        for job in jobs:
            start: int | None = self._recorded_to.get(job.job_id, 0)
            while start is not None and windows < _WINDOWS:
                with self._database.begin() as conn:
                    leader.check(conn, epoch)
                    start = schedule_objects.record(conn, job, start)
                windows += 1
            if start is not None:
                self._recorded_to[job.job_id] = start
                break
            self._recorded_to.pop(job.job_id, None)
            ended += 1
        return ended


def fire_one(conn: Connection, schedule_id: uuid.UUID, now: datetime, rules: SubmitRules) -> Fired:
    """Fire one schedule's due times in the caller's transaction; nothing where somebody else has."""
    schedule = schedules.lock_due(conn, schedule_id, now)
    if schedule is None or schedule.next_at is None:
        return Fired(runs={})
    return _Firing(conn, schedule, now, rules).all_due(schedule.next_at)


def make_run(
    conn: Connection,
    schedule: Schedule,
    *,
    trigger: RunTrigger,
    scheduled: datetime,
    now: datetime,
    rules: SubmitRules,
    only_new: bool,
) -> tuple[NewRun, tuple[uuid.UUID, ...]] | None:
    """A run and its job, and the jobs cancelled for it; None where this time has its run already.

    Raises what `submit` raises; the caller's transaction, or its savepoint, is then to be rolled back.
    """
    earlier = schedule_runs.active_jobs(conn, schedule.schedule_id)
    run = NewRun(
        run_id=uuid7(),
        schedule_id=schedule.schedule_id,
        tenant_id=schedule.tenant_id,
        trigger=trigger,
        scheduled_at=scheduled,
        state=RunState.FIRED,
        only_new=only_new,
        job_id=uuid7(),
    )
    if not schedule_runs.insert(conn, run) or run.job_id is None:
        return None
    template = JobTemplate.from_json(schedule.template)
    local = scheduled.astimezone(ZoneInfo(schedule.rules.timezone))
    tenant = tenants.get_tenant(conn, schedule.tenant_id)
    if tenant is None:
        raise NotFound("the schedule's tenant is gone")
    submit(conn, tenant, template.at(local, fired=now), rules, job_id=run.job_id)
    schedule_runs.link(conn, schedule_id=schedule.schedule_id, run_id=run.run_id, job_id=run.job_id)
    if schedule.rules.overlap is not Overlap.CANCEL_PREVIOUS:
        return run, ()
    for job_id in earlier:
        cancel.request(conn, schedule.tenant_id, job_id)
    return run, earlier


class _Firing:
    """One schedule, locked, and what happens to its due times."""

    def __init__(self, conn: Connection, schedule: Schedule, now: datetime, rules: SubmitRules) -> None:
        self._conn = conn
        self._schedule = schedule
        self._now = now
        self._rules = rules
        self._runs: Counter[RunState] = Counter()
        self._cancelled: list[uuid.UUID] = []

    def all_due(self, first: datetime) -> Fired:
        own = self._schedule.rules
        try:
            found = timing(own.cron, own.timezone)
        except InvalidParameter as error:  # this machine knows the zone no more
            self._fail(first, error)
            return self._done(None)
        times = due_until(found, first, self._now)
        following = found.next(times[-1])
        if following is not None and following <= self._now:  # more than can be looked at: these are lost for good
            self._missed(times)
            return self._done(following)
        rule = MissedRule(catch_up=own.catch_up, grace=own.misfire_grace, limit=own.catch_up_limit)
        due = sort_out(times, self._now, rule)
        if due.missed:
            self._missed(due.missed)
        for time, late in due.fire:
            busy = own.overlap is Overlap.SKIP and schedule_runs.active_jobs(self._conn, self._schedule.schedule_id)
            if busy and late:
                return self._done(time)
            if busy:
                self._note(time, RunState.SKIPPED, f"the run before it had not ended: job {busy[0]}")
            else:
                self._fire(time)
        return self._done(following)

    def _fire(self, time: datetime) -> None:
        try:
            with self._conn.begin_nested():
                made = make_run(
                    self._conn,
                    self._schedule,
                    trigger=RunTrigger.CRON,
                    scheduled=time,
                    now=self._now,
                    rules=self._rules,
                    only_new=self._schedule.rules.only_new,
                )
        except (ServiceUnavailable, DBAPIError):
            raise  # not the schedule's fault: all of it is tried again
        except BatchsightError as error:
            self._fail(time, error)
        except Exception:  # noqa: BLE001 - a defect in one schedule must not hold up the others; it is logged
            _log.exception("schedule_raised", schedule_id=str(self._schedule.schedule_id))
            self._fail(time, InternalError("an unexpected failure inside the service; it has been logged"))
        else:
            if made is not None:
                run, cancelled = made
                self._runs[RunState.FIRED] += 1
                self._cancelled += cancelled
                _log.info("schedule_fired", **self._named(time), job_id=str(run.job_id))

    def _fail(self, time: datetime, error: BatchsightError) -> None:
        run = self._new(time, RunState.FAILED, error.message, code=error.code)
        if schedule_runs.insert(self._conn, run):
            self._runs[RunState.FAILED] += 1
            _log.warning("schedule_failed", **self._named(time), code=error.code, error=error.message)

    def _missed(self, times: tuple[datetime, ...]) -> None:
        count = "it was" if len(times) == 1 else f"{len(times)} times, from {times[0].isoformat()} on, were"
        self._note(times[-1], RunState.MISSED, f"{count} missed while no dispatcher ran, and not made up for")

    def _note(self, time: datetime, state: RunState, message: str) -> None:
        if schedule_runs.insert(self._conn, self._new(time, state, message)):
            self._runs[state] += 1
            _log.info("schedule_left_out", **self._named(time), state=str(state), reason=message)

    def _new(self, time: datetime, state: RunState, message: str, *, code: str | None = None) -> NewRun:
        return NewRun(
            run_id=uuid7(),
            schedule_id=self._schedule.schedule_id,
            tenant_id=self._schedule.tenant_id,
            trigger=RunTrigger.CRON,
            scheduled_at=time,
            state=state,
            only_new=self._schedule.rules.only_new,
            code=code,
            message=message,
        )

    def _named(self, time: datetime) -> dict[str, str]:
        return {"schedule_id": str(self._schedule.schedule_id), "scheduled_at": time.isoformat()}

    def _done(self, next_at: datetime | None) -> Fired:
        schedules.advance(self._conn, self._schedule.schedule_id, next_at)
        return Fired(runs=self._runs, cancelled=tuple(self._cancelled))
