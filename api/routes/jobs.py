"""Jobs: submit, read (with long polling), list, cancel, redrive."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy import Connection

from api import views
from api.dependencies import JobsRead, JobsWrite, Limit, ServicesDep
from api.documentation import PROBLEMS, problems
from api.estimates import estimated
from api.idempotency import IdempotencyKey, Stored, once
from api.ids import file_uuid
from api.jsonbody import StrictRoute
from api.schemas import jobs as schema
from api.schemas.base import Moment, Page
from api.schemas.estimates import Estimate
from api.services import Services
from api.snapshots import Snapshot
from pipelines.control import cancel as cancelling
from pipelines.control import query, redrive
from pipelines.control.query import JobView
from pipelines.jobs.errors import NotFound
from pipelines.jobs.states import JobState
from pipelines.steps.submit import Submission, submit
from pipelines.store import jobs as store
from pipelines.store.tenants import Principal

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=StrictRoute, responses=PROBLEMS)

_LONGEST_WAIT = 60
_PREFER_WAIT = re.compile(r"\bwait\s*=\s*(\d{1,6})\b")
_METADATA_QUERY = re.compile(r"\Ametadata\[([^\]]{1,200})\]\Z")


@router.post(
    "",
    operation_id="submitJob",
    status_code=202,
    response_model=schema.Job,
    responses={
        200: {"model": Estimate, "description": "with `dry_run`: what the job would be; nothing was stored"},
        **problems(404, 409, 413),
    },
    summary="Submit a job",
)
async def submit_job(
    request: Request, body: schema.JobRequest, services: ServicesDep, caller: JobsWrite, key: IdempotencyKey = None
) -> Response:
    """Checks, commits and answers; the work begins a moment later. Repeat with the same `Idempotency-Key` at will."""
    del key  # declared for OpenAPI; read with the request
    submission = submission_of(body)
    if body.dry_run:
        return JSONResponse((await estimated(services, caller, submission)).model_dump(mode="json"))

    def work(conn: Connection) -> Stored:
        new = submit(conn, caller.tenant, submission, services.submit_rules)
        return Stored(status=202, body=_shown(services, _found(conn, caller, new.job_id)))

    stored = await once(services, caller, request, body.model_dump(mode="json"), work)
    if not stored.replayed:
        services.metrics.submitted.labels(submission.kind).inc()
        job = stored.body
        if job["state"] == JobState.QUEUED:  # it waits to be planned
            await services.hint_plan(uuid.UUID(job["id"]), interactive=job["priority"] == "interactive")
    return accepted(stored)


@router.get(
    "/{job_id}",
    operation_id="getJob",
    response_model=schema.Job,
    responses={304: {"description": "not changed since the ETag in If-None-Match"}, **problems(404)},
    summary="Read a job, or wait for it",
)
async def get_job(
    job_id: uuid.UUID,
    services: ServicesDep,
    caller: JobsRead,
    wait: Annotated[int, Query(ge=0, le=_LONGEST_WAIT, description="seconds to wait for news")] = 0,
    prefer: Annotated[str | None, Header(description="`wait=n`, as the query parameter")] = None,
    if_none_match: Annotated[str | None, Header(description="the ETag you have")] = None,
) -> Response:
    """At once, or with `wait`: when the job has changed from the ETag you name, or has ended if you name none."""
    preferred = _PREFER_WAIT.search(prefer or "")
    seconds = min(_LONGEST_WAIT, int(preferred[1])) if preferred and not wait else wait
    since = services.snapshots.changes
    snapshot = services.snapshots.keep(await services.transact(lambda conn: _found(conn, caller, job_id)), since=since)
    if seconds:
        snapshot = await _waited(services, caller, snapshot, if_none_match, seconds)
    headers = dict(snapshot.headers)
    if preferred and not wait:
        headers["Preference-Applied"] = f"wait={seconds}"
    if snapshot.matches(if_none_match):
        return Response(status_code=304, headers=headers)
    return Response(snapshot.body, headers=headers, media_type="application/json")


@router.get("", operation_id="listJobs", response_model=Page[schema.Job], summary="List jobs, newest first")
async def list_jobs(
    *,
    request: Request,
    services: ServicesDep,
    caller: JobsRead,
    state: Annotated[list[JobState] | None, Query(description="only these states")] = None,
    kind: Annotated[str | None, Query(max_length=100)] = None,
    created_after: Annotated[Moment | None, Query(description="from this time on")] = None,
    created_before: Annotated[Moment | None, Query(description="before this time")] = None,
    parent_id: Annotated[uuid.UUID | None, Query(description="redrives of this job")] = None,
    schedule_id: Annotated[uuid.UUID | None, Query(description="runs of this schedule, and their redrives")] = None,
    after: Annotated[uuid.UUID | None, Query(description="`last_id` of the page before")] = None,
    limit: Limit = 20,
) -> Response:
    """Filter by metadata with `metadata[name]=value`, as often as you like."""
    metadata = _metadata_filter(request)
    found = await services.transact(
        lambda conn: store.list_jobs(
            conn,
            caller.tenant_id,
            limit=limit + 1,
            before=after,
            states=state,
            kind=kind,
            metadata=metadata or None,
            created_from=created_after,
            created_until=created_before,
            parent_id=parent_id,
            schedule_id=schedule_id,
        )
    )
    shown = [_shown(services, JobView(job=job)) for job in found[:limit]]
    return JSONResponse(page_of(shown, "id", more=len(found) > limit))


@router.post(
    "/{job_id}/cancel",
    operation_id="cancelJob",
    response_model=schema.Job,
    responses=problems(404, 409),
    summary="Cancel a job",
)
async def cancel_job(job_id: uuid.UUID, services: ServicesDep, caller: JobsWrite) -> Response:
    """Queued items end at once, running ones at the next step; what has succeeded is kept."""

    def work(conn: Connection) -> JobView:
        cancelling.request(conn, caller.tenant_id, job_id)
        return _found(conn, caller, job_id)

    view = await services.transact(work)
    services.snapshots.forget(job_id)  # who cancels and then reads sees it
    await services.hint_cancel(job_id)
    return JSONResponse(_shown(services, view))


@router.post(
    "/{job_id}/redrive",
    operation_id="redriveJob",
    status_code=202,
    response_model=schema.Job,
    responses=problems(404, 409),
    summary="Run failed items again",
)
async def redrive_job(
    request: Request,
    job_id: uuid.UUID,
    services: ServicesDep,
    caller: JobsWrite,
    body: schema.RedriveRequest | None = None,
    key: IdempotencyKey = None,
) -> Response:
    """A child job of the failed items: all of them, or those with the given error codes. The parent never changes."""
    del key
    codes = body.codes if body else None

    def work(conn: Connection) -> Stored:
        child = redrive.create(conn, caller.tenant_id, job_id, codes=codes)
        return Stored(status=202, body=_shown(services, _found(conn, caller, child)))

    return accepted(await once(services, caller, request, {"codes": codes}, work))


def submission_of(body: schema.JobRequest) -> Submission:
    """The normalised form: uploaded files as `upload:<uuid>`."""
    return Submission(
        kind=body.kind,
        parameters=body.parameters,
        source=_normalised(body.source),
        priority=schema.PRIORITIES[body.priority],
        metadata=body.metadata,
        deadline_at=body.deadline_at,
        export=None if body.export is None else body.export.options(),
        webhook_endpoint_id=body.webhook.endpoint_id if body.webhook else None,
    )


def accepted(stored: Stored) -> Response:
    """202 with the job's address."""
    headers = {"Location": stored.body["links"]["self"], "Retry-After": "1"}
    if stored.replayed:
        headers["Idempotent-Replayed"] = "true"
    return JSONResponse(stored.body, status_code=stored.status, headers=headers)


def page_of(shown: list[dict[str, Any]], key: str, *, more: bool) -> dict[str, Any]:
    """A listing's page."""
    return {
        "object": "list",
        "data": shown,
        "first_id": str(shown[0][key]) if shown else None,
        "last_id": str(shown[-1][key]) if shown else None,
        "has_more": more,
    }


def _found(conn: Connection, caller: Principal, job_id: uuid.UUID) -> JobView:
    view = query.read_job(conn, caller.tenant_id, job_id)
    if view is None:
        raise NotFound("there is no such job")
    return view


def _shown(services: Services, view: JobView) -> dict[str, Any]:
    return views.job(view, gpu_second_cost=services.settings.gpu_second_cost).model_dump(mode="json")


async def _waited(
    services: Services, caller: Principal, snapshot: Snapshot, if_none_match: str | None, seconds: int
) -> Snapshot:
    until = asyncio.get_running_loop().time() + seconds
    with services.metrics.waiting.track_inprogress():
        while not snapshot.view.job.state.terminal and snapshot.knows(if_none_match):
            job_id, seen = snapshot.view.job.job_id, snapshot.version
            since = services.snapshots.changes
            newer = await services.watch.wait(caller.tenant_id, job_id, seen=seen, until=until)
            if newer is None:
                return snapshot
            snapshot = services.snapshots.keep(newer, since=since)
    return snapshot


def _normalised(source: schema.Source) -> dict[str, Any]:
    match source:
        case schema.MediaSource(media=media):
            return {"type": "media", "media": [_entry(entry) for entry in media]}
        case schema.FilesSource(file_ids=file_ids):
            return {"type": "files", "file_ids": [str(file_uuid(file_id)) for file_id in file_ids]}
        case schema.ManifestSource(inline=str(inline)):
            return {"type": "manifest", "inline": inline, "format": source.format}
        case schema.ManifestSource(file_id=file_id, url=url):
            return {"type": "manifest", "url": _address(url, file_id), "format": source.format}
        case schema.PrefixSource(url=url):
            return {"type": "prefix", "url": url}
    return {"type": "none"}


def _entry(entry: schema.MediaEntry) -> dict[str, Any]:
    normal: dict[str, Any] = {"url": _address(entry.url, entry.file_id)}
    if entry.id is not None:
        normal["id"] = entry.id
    if entry.parameters:
        normal["parameters"] = entry.parameters
    if entry.metadata:
        normal["metadata"] = entry.metadata
    return normal


def _address(url: str | None, file_id: str | None) -> str:
    return url if url is not None else f"upload:{file_uuid(file_id or '')}"


def _metadata_filter(request: Request) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        match = _METADATA_QUERY.match(name)
        if match:
            found[match[1]] = value
    return found
