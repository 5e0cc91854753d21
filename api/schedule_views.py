"""From what the store knows of schedules to what clients see."""

from __future__ import annotations

from datetime import datetime, timedelta

from api import views
from api.schemas import schedules as schema
from api.schemas.jobs import Failure
from pipelines.control.schedule import upcoming
from pipelines.control.template import JobTemplate
from pipelines.jobs.errors import InvalidParameter
from pipelines.jobs.schedules import RunState, Schedule, ScheduleRun

_NEXT_RUNS = 5


def schedule(found: Schedule, last_run: ScheduleRun | None) -> schema.Schedule:
    """A schedule with its next times and its last run."""
    own = f"/v1/schedules/{found.schedule_id}"
    rules = found.rules
    template = JobTemplate.from_json(found.template)
    job = template.submission
    return schema.Schedule(
        id=found.schedule_id,
        name=found.name,
        cron=rules.cron,
        timezone=rules.timezone,
        job=schema.Template(
            kind=job.kind,
            source=views.shown_source(dict(job.source)),
            parameters=dict(job.parameters),
            priority=views.PRIORITY_NAMES[job.priority],
            metadata=dict(job.metadata),
            deadline_seconds=template.deadline_seconds,
            export=None if job.export is None else {"url": job.export.url, **job.export.to_json()},
            webhook_endpoint_id=job.webhook_endpoint_id,
        ),
        overlap=rules.overlap,
        catch_up=rules.catch_up,
        catch_up_limit=rules.catch_up_limit,
        misfire_grace_seconds=rules.misfire_grace,
        only_new=rules.only_new,
        paused=found.paused_at is not None,
        next_at=found.next_at,
        next_runs=_next_runs(found),
        last_run=None if last_run is None else run(last_run),
        created_at=found.created_at,
        updated_at=found.updated_at,
        links={
            "self": own,
            "runs": f"{own}/runs",
            "run": f"{own}/run",
            "jobs": f"/v1/jobs?schedule_id={found.schedule_id}",
        },
    )


def run(found: ScheduleRun) -> schema.ScheduleRun:
    """One line of the history."""
    links = {"schedule": f"/v1/schedules/{found.schedule_id}"}
    if found.job_id is not None:
        links["job"] = f"/v1/jobs/{found.job_id}"
    failed = found.state is RunState.FAILED
    return schema.ScheduleRun(
        id=found.run_id,
        schedule_id=found.schedule_id,
        trigger=found.trigger,
        state=found.state,
        scheduled_at=found.scheduled_at,
        fired_at=found.fired_at,
        only_new=found.only_new,
        job_id=found.job_id,
        job_state=found.job_state,
        reason=None if failed else found.error_message,
        error=Failure(code=found.error_code or "", message=found.error_message or "") if failed else None,
        links=links,
    )


def _next_runs(found: Schedule) -> list[datetime]:
    if found.next_at is None:
        return []
    try:
        return list(upcoming(found.rules, found.next_at - timedelta(seconds=1), _NEXT_RUNS))
    except InvalidParameter:  # a zone that this machine does not know; the leader says so in the history
        return [found.next_at]
