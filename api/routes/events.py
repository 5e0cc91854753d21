"""A job's life as server-sent events, resumable from the last event that was seen."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header
from fastapi.responses import StreamingResponse

from api import views
from api.dependencies import JobsRead, ServicesDep
from api.documentation import PROBLEMS, problems
from api.services import Services
from pipelines.control import query
from pipelines.control.query import JobView
from pipelines.jobs.errors import NotFound
from pipelines.store.tenants import Principal

router = APIRouter(prefix="/v1/jobs/{job_id}/events", tags=["jobs"], responses=PROBLEMS)

EVENT_STREAM = "text/event-stream"
_SILENCE = 15.0  # seconds after which a comment is sent, so that no proxy takes the connection for dead
_RECONNECT = 2_000  # milliseconds that a browser waits before it comes back


@router.get(
    "",
    operation_id="getJobEvents",
    response_class=StreamingResponse,
    responses={200: {"content": {EVENT_STREAM: {}}, "description": "an event for each new version"}, **problems(404)},
    summary="Follow a job (server-sent events)",
)
async def get_job_events(
    job_id: uuid.UUID,
    services: ServicesDep,
    caller: JobsRead,
    last_event_id: Annotated[str | None, Header(description="the version you have seen; later ones follow")] = None,
) -> StreamingResponse:
    """Events `job` carry the whole job, their id is its version; the stream ends with the job, by the event `end`."""
    view = await services.transact(lambda conn: query.read_job(conn, caller.tenant_id, job_id))
    if view is None:
        raise NotFound("there is no such job")
    seen = int(last_event_id) if last_event_id and last_event_id.isascii() and last_event_id.isdigit() else 0
    return StreamingResponse(
        _events(services, caller, view, seen),
        media_type=EVENT_STREAM,
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


async def _events(services: Services, caller: Principal, view: JobView, seen: int) -> AsyncIterator[str]:
    yield f"retry: {_RECONNECT}\n\n"
    cost = services.settings.gpu_second_cost
    loop = asyncio.get_running_loop()
    with services.metrics.waiting.track_inprogress():
        while True:
            version = view.job.version
            if version > seen:
                seen = version
                yield f"id: {version}\nevent: job\ndata: {views.job(view, gpu_second_cost=cost).model_dump_json()}\n\n"
            if view.job.state.terminal:
                yield f"id: {version}\nevent: end\ndata: {view.job.state}\n\n"
                return
            newer = await services.watch.wait(
                caller.tenant_id, view.job.job_id, seen=version, until=loop.time() + _SILENCE
            )
            if services.watch.closing:
                return  # the client comes back, with the id of the last event
            if newer is None:
                yield ": still here\n\n"
            else:
                view = newer
