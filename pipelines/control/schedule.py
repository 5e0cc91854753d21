"""Schedules as their owner sees them: made, changed, paused, run by hand. What fires them stands in `control.firing`.

Everything that can be told beforehand is told when a schedule is made or changed: the cron, the zone, and the job
itself as it would be at the next time. Times that pass while a schedule is paused are not missed; they never were due.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from pipelines.control.cron import Timing, timing
from pipelines.control.firing import make_run
from pipelines.control.template import JobTemplate
from pipelines.jobs.errors import Conflict, InvalidParameter, NotFound, QuotaExceeded
from pipelines.jobs.ids import uuid7
from pipelines.jobs.schedules import Overlap, RunTrigger, Schedule, ScheduleRules, ScheduleRun
from pipelines.steps.submit import SubmitRules, check
from pipelines.store import schedule_runs, schedules
from pipelines.store.schedules import NewSchedule
from pipelines.store.tenants import Tenant


@dataclass(frozen=True, kw_only=True)
class Made:
    """A run by hand, and the jobs that were cancelled for it: workers are to be told."""

    run: ScheduleRun
    cancelled: tuple[uuid.UUID, ...]


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What a change sets; what is left out stays. `rules`: fields of `ScheduleRules` by name."""

    name: str | None = None
    template: JobTemplate | None = None
    rules: Mapping[str, Any] = field(default_factory=dict)


def create(
    conn: Connection,
    tenant: Tenant,
    *,
    name: str,
    rules: ScheduleRules,
    template: JobTemplate,
    paused: bool,
    submit_rules: SubmitRules,
    most: int,
) -> Schedule:
    """Check and insert. Raises `InvalidParameter`, `Conflict`, `QuotaExceeded`, and what `submit.check` raises."""
    found = timing(rules.cron, rules.timezone)
    _check_only_new(rules, template)
    now = schedules.now(conn)
    template = _checked(conn, tenant, template, found, now, submit_rules)
    if schedules.count(conn, tenant.tenant_id) >= most:
        raise QuotaExceeded(f"{most} schedules are allowed at once; delete one first")
    new = NewSchedule(
        schedule_id=uuid7(),
        tenant_id=tenant.tenant_id,
        name=name,
        rules=replace(rules, cron=found.cron),
        template=template.to_json(),
        next_at=None if paused else found.next(now),
        paused=paused,
    )
    return schedules.insert(conn, new)


def change(
    conn: Connection, tenant: Tenant, schedule_id: uuid.UUID, changes: Changes, submit_rules: SubmitRules
) -> Schedule:
    """Change what is given. A new cron or zone counts from now on; a new job from the next run on.

    Raises `NotFound`, and what `create` raises but `QuotaExceeded`.
    """
    before = _locked(conn, tenant.tenant_id, schedule_id)
    rules = replace(before.rules, **changes.rules)
    found = timing(rules.cron, rules.timezone)
    rules = replace(rules, cron=found.cron)
    now = schedules.now(conn)
    template = JobTemplate.from_json(before.template)
    if changes.template is not None:
        template = _checked(conn, tenant, changes.template, found, now, submit_rules)
        if "only_new" not in changes.rules:
            rules = replace(rules, only_new=rules.only_new and template.lists_objects)
    _check_only_new(rules, template)
    moved = (rules.cron, rules.timezone) != (before.rules.cron, before.rules.timezone)
    paused = before.paused_at is not None
    after = replace(
        before,
        name=before.name if changes.name is None else changes.name,
        rules=rules,
        template=template.to_json(),
        next_at=found.next(now) if moved and not paused else before.next_at,
    )
    return schedules.save(conn, after, paused=paused)


def pause(conn: Connection, tenant_id: uuid.UUID, schedule_id: uuid.UUID) -> Schedule:
    """Fire no more until `resume`. A second time changes nothing. Raises `NotFound`."""
    before = _locked(conn, tenant_id, schedule_id)
    return schedules.save(conn, replace(before, next_at=None), paused=True)


def resume(conn: Connection, tenant_id: uuid.UUID, schedule_id: uuid.UUID) -> Schedule:
    """Fire again, from the next time after now on. Raises `NotFound`."""
    before = _locked(conn, tenant_id, schedule_id)
    if before.paused_at is None:
        return before
    found = timing(before.rules.cron, before.rules.timezone)
    return schedules.save(conn, replace(before, next_at=found.next(schedules.now(conn))), paused=False)


def delete(conn: Connection, tenant_id: uuid.UUID, schedule_id: uuid.UUID) -> None:
    """Stop it for good. Its jobs stay, and go on; its history goes. Raises `NotFound`."""
    if not schedules.delete(conn, tenant_id, schedule_id):
        raise NotFound("there is no such schedule")


def run_now(
    conn: Connection,
    tenant_id: uuid.UUID,
    schedule_id: uuid.UUID,
    submit_rules: SubmitRules,
    *,
    only_new: bool | None = None,
) -> Made:
    """A run beside the cron, dates as of now; of a paused schedule too. `only_new`: None as the schedule has it.

    Raises `NotFound`, `Conflict` where the run before has not ended and `overlap` is `skip`, and what `submit` raises.
    """
    schedule = _locked(conn, tenant_id, schedule_id)
    busy = schedule_runs.active_jobs(conn, schedule_id)
    if busy and schedule.rules.overlap is Overlap.SKIP:
        raise Conflict(f"the run before has not ended: wait for job {busy[0]}, or cancel it")
    if only_new and not JobTemplate.from_json(schedule.template).lists_objects:
        raise InvalidParameter("only_new needs a prefix as source: its objects have versions", param="only_new")
    now = schedules.now(conn)
    made = make_run(
        conn,
        schedule,
        trigger=RunTrigger.MANUAL,
        scheduled=now,
        now=now,
        rules=submit_rules,
        only_new=schedule.rules.only_new if only_new is None else only_new,
    )
    run = None if made is None else schedule_runs.get(conn, tenant_id, made[0].run_id)
    if made is None or run is None:
        raise Conflict("this run exists already")
    return Made(run=run, cancelled=made[1])


def upcoming(rules: ScheduleRules, after: datetime, count: int) -> tuple[datetime, ...]:
    """The next times after `after`, in the schedule's own offsets. Raises `InvalidParameter`."""
    return tuple(itertools.islice(timing(rules.cron, rules.timezone).after(after), count))


def _checked(
    conn: Connection, tenant: Tenant, template: JobTemplate, found: Timing, now: datetime, rules: SubmitRules
) -> JobTemplate:
    """The template with its parameters in full, found good as it would be at the next time."""
    local = (found.next(now) or now).astimezone(found.zone)
    _, parameters = check(conn, tenant, template.at(local, fired=now), rules, quota=False)
    return replace(template, submission=replace(template.submission, parameters=parameters))


def _check_only_new(rules: ScheduleRules, template: JobTemplate) -> None:
    if rules.only_new and not template.lists_objects:
        raise InvalidParameter("only_new needs a prefix as source: its objects have versions", param="only_new")


def _locked(conn: Connection, tenant_id: uuid.UUID, schedule_id: uuid.UUID) -> Schedule:
    found = schedules.lock(conn, tenant_id, schedule_id)
    if found is None:
        raise NotFound("there is no such schedule")
    return found
