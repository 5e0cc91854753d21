"""Schedules: make, read, change, pause, run by hand, history."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy import Connection

from api import schedule_views as views
from api.dependencies import JobsRead, JobsWrite, Limit, ServicesDep
from api.documentation import PROBLEMS, problems
from api.idempotency import IdempotencyKey, Stored, once
from api.jsonbody import StrictRoute
from api.routes.jobs import page_of, submission_of
from api.schemas import schedules as schema
from api.schemas.base import Page
from api.services import Services
from pipelines.control import schedule as control
from pipelines.control.placeholders import fill
from pipelines.control.schedule import Changes
from pipelines.control.template import JobTemplate
from pipelines.jobs.errors import InvalidParameter, NotFound
from pipelines.jobs.schedules import RunState, Schedule, ScheduleRules, ScheduleRun
from pipelines.store import schedule_runs, schedules
from pipelines.store.tenants import Principal

# Ids are matched as UUIDs, so that `/preview` is no id: other methods of it are refused as such (405).
_EARLIEST, _LATEST = 1970, 2200

router = APIRouter(prefix="/v1/schedules", tags=["schedules"], route_class=StrictRoute, responses=PROBLEMS)


@router.post(
    "",
    operation_id="createSchedule",
    status_code=201,
    response_model=schema.Schedule,
    responses=problems(404, 409, 413),
    summary="Make a schedule",
)
async def create_schedule(
    request: Request, body: schema.ScheduleRequest, services: ServicesDep, caller: JobsWrite, key: IdempotencyKey = None
) -> Response:
    """The job is checked as it would be at the next time, so that what cannot run is said at once."""
    del key
    template = _template(body.job)
    rules = ScheduleRules(
        cron=body.cron,
        timezone=body.timezone,
        overlap=body.overlap,
        catch_up=body.catch_up,
        catch_up_limit=body.catch_up_limit,
        misfire_grace=body.misfire_grace_seconds,
        only_new=template.lists_objects if body.only_new is None else body.only_new,
    )

    def work(conn: Connection) -> Stored:
        made = control.create(
            conn,
            caller.tenant,
            name=body.name,
            rules=rules,
            template=template,
            paused=body.paused,
            submit_rules=services.submit_rules,
            most=services.settings.max_schedules,
        )
        return Stored(status=201, body=_shown(conn, made))

    return _made(await once(services, caller, request, body.model_dump(mode="json"), work))


@router.post(
    "/preview", operation_id="previewSchedule", response_model=schema.Preview, summary="See when it would fire"
)
async def preview_schedule(body: schema.PreviewRequest, services: ServicesDep, caller: JobsRead) -> Response:
    """The next times of a cron in a zone, through changes of the clock, and what a URL with dates becomes."""
    del caller
    after = await services.transact(schedules.now) if body.after is None else body.after
    if not _EARLIEST <= after.year <= _LATEST:
        raise InvalidParameter(f"after must lie between {_EARLIEST} and {_LATEST}", param="after")
    rules = ScheduleRules(cron=body.cron, timezone=body.timezone)
    times = await services.in_thread(lambda: control.upcoming(rules, after, body.count))
    data = [
        schema.PreviewTime(at=time, url=None if body.url is None else fill(body.url, time, param="url"))
        for time in times
    ]
    return JSONResponse(schema.Preview(data=data).model_dump(mode="json"))


@router.get("", operation_id="listSchedules", response_model=Page[schema.Schedule], summary="List schedules")
async def list_schedules(
    *,
    services: ServicesDep,
    caller: JobsRead,
    after: Annotated[uuid.UUID | None, Query(description="`last_id` of the page before")] = None,
    limit: Limit = 20,
) -> Response:
    """Newest first."""

    def work(conn: Connection) -> tuple[list[dict[str, Any]], bool]:
        found = schedules.list_schedules(conn, caller.tenant_id, limit=limit + 1, before=after)
        last = schedule_runs.last_runs(conn, [each.schedule_id for each in found[:limit]])
        shown = [views.schedule(each, last.get(each.schedule_id)) for each in found[:limit]]
        return [each.model_dump(mode="json") for each in shown], len(found) > limit

    shown, more = await services.transact(work)
    return JSONResponse(page_of(shown, "id", more=more))


@router.get(
    "/{schedule_id:uuid}",
    operation_id="getSchedule",
    response_model=schema.Schedule,
    responses=problems(404),
    summary="Read a schedule",
)
async def get_schedule(schedule_id: uuid.UUID, services: ServicesDep, caller: JobsRead) -> Response:
    """With its next times and its last run."""
    return await _answered(services, lambda conn: _found(conn, caller, schedule_id))


@router.patch(
    "/{schedule_id:uuid}",
    operation_id="changeSchedule",
    response_model=schema.Schedule,
    responses=problems(404, 409, 413),
    summary="Change a schedule",
)
async def change_schedule(
    schedule_id: uuid.UUID, body: schema.ScheduleChange, services: ServicesDep, caller: JobsWrite
) -> Response:
    """A new cron or zone counts from now on, a new job from the next run on. Objects that were done stay done."""
    rules = {
        "cron": body.cron,
        "timezone": body.timezone,
        "overlap": body.overlap,
        "catch_up": body.catch_up,
        "catch_up_limit": body.catch_up_limit,
        "misfire_grace": body.misfire_grace_seconds,
        "only_new": body.only_new,
    }
    changes = Changes(
        name=body.name,
        template=None if body.job is None else _template(body.job),
        rules={name: value for name, value in rules.items() if value is not None},
    )
    return await _answered(
        services, lambda conn: control.change(conn, caller.tenant, schedule_id, changes, services.submit_rules)
    )


@router.delete(
    "/{schedule_id:uuid}",
    operation_id="deleteSchedule",
    response_model=schema.DeletedSchedule,
    responses=problems(404),
    summary="Delete a schedule",
)
async def delete_schedule(schedule_id: uuid.UUID, services: ServicesDep, caller: JobsWrite) -> Response:
    """It fires no more, and its history is forgotten. Its jobs stay, and those that run go on."""
    await services.transact(lambda conn: control.delete(conn, caller.tenant_id, schedule_id))
    return JSONResponse(schema.DeletedSchedule(id=schedule_id).model_dump(mode="json"))


@router.post(
    "/{schedule_id:uuid}/pause",
    operation_id="pauseSchedule",
    response_model=schema.Schedule,
    responses=problems(404),
    summary="Pause a schedule",
)
async def pause_schedule(schedule_id: uuid.UUID, services: ServicesDep, caller: JobsWrite) -> Response:
    """Times that pass meanwhile are not made up for. What runs goes on."""
    return await _answered(services, lambda conn: control.pause(conn, caller.tenant_id, schedule_id))


@router.post(
    "/{schedule_id:uuid}/resume",
    operation_id="resumeSchedule",
    response_model=schema.Schedule,
    responses=problems(404),
    summary="Resume a schedule",
)
async def resume_schedule(schedule_id: uuid.UUID, services: ServicesDep, caller: JobsWrite) -> Response:
    """From the next time on."""
    return await _answered(services, lambda conn: control.resume(conn, caller.tenant_id, schedule_id))


@router.post(
    "/{schedule_id:uuid}/run",
    operation_id="runSchedule",
    status_code=202,
    response_model=schema.ScheduleRun,
    responses=problems(404, 409, 413),
    summary="Run a schedule now",
)
async def run_schedule(
    request: Request,
    schedule_id: uuid.UUID,
    services: ServicesDep,
    caller: JobsWrite,
    body: schema.RunRequest | None = None,
    key: IdempotencyKey = None,
) -> Response:
    """A run beside the cron, with the dates of this moment; of a paused schedule too."""
    del key
    only_new = body.only_new if body else None
    cancelled: list[uuid.UUID] = []

    def work(conn: Connection) -> Stored:
        made = control.run_now(conn, caller.tenant_id, schedule_id, services.submit_rules, only_new=only_new)
        cancelled.extend(made.cancelled)
        return Stored(status=202, body=views.run(made.run).model_dump(mode="json"))

    stored = await once(services, caller, request, {"only_new": only_new}, work)
    if not stored.replayed:
        # No plan hint: the dispatcher has been woken, and interactive priority is not what a schedule is for.
        for job_id in cancelled:
            await services.hint_cancel(job_id)
    return _made(stored, location=stored.body["links"]["job"])


@router.get(
    "/{schedule_id:uuid}/runs",
    operation_id="listScheduleRuns",
    response_model=Page[schema.ScheduleRun],
    responses=problems(404),
    summary="Read the history",
)
async def list_runs(
    *,
    schedule_id: uuid.UUID,
    services: ServicesDep,
    caller: JobsRead,
    state: Annotated[list[RunState] | None, Query(description="only these states")] = None,
    after: Annotated[uuid.UUID | None, Query(description="`last_id` of the page before")] = None,
    limit: Limit = 20,
) -> Response:
    """Every time that was due, newest first, and what became of it. Kept as long as jobs are."""

    def work(conn: Connection) -> tuple[ScheduleRun, ...]:
        _found(conn, caller, schedule_id)
        return schedule_runs.list_runs(conn, caller.tenant_id, schedule_id, limit=limit + 1, before=after, states=state)

    found = await services.transact(work)
    shown = [views.run(each).model_dump(mode="json") for each in found[:limit]]
    return JSONResponse(page_of(shown, "id", more=len(found) > limit))


def _template(job: schema.JobTemplate) -> JobTemplate:
    return JobTemplate(submission=submission_of(job), deadline_seconds=job.deadline_seconds)


def _found(conn: Connection, caller: Principal, schedule_id: uuid.UUID) -> Schedule:
    found = schedules.get(conn, caller.tenant_id, schedule_id)
    if found is None:
        raise NotFound("there is no such schedule")
    return found


def _shown(conn: Connection, found: Schedule) -> dict[str, Any]:
    last = schedule_runs.last_runs(conn, [found.schedule_id]).get(found.schedule_id)
    return views.schedule(found, last).model_dump(mode="json")


async def _answered(services: Services, work: Callable[[Connection], Schedule]) -> Response:
    return JSONResponse(await services.transact(lambda conn: _shown(conn, work(conn))))


def _made(stored: Stored, *, location: str | None = None) -> Response:
    headers = {"Location": location or stored.body["links"]["self"]}
    if stored.replayed:
        headers["Idempotent-Replayed"] = "true"
    return JSONResponse(stored.body, status_code=stored.status, headers=headers)
