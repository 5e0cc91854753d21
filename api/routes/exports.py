"""Exports of a job's results: ask, read, list, cancel, download."""

from __future__ import annotations

import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from sqlalchemy import Connection

from api import views
from api.dependencies import JobsRead, JobsWrite, Limit, ServicesDep
from api.documentation import PROBLEMS, problems
from api.idempotency import IdempotencyKey, Stored, once
from api.jsonbody import StrictRoute
from api.routes.jobs import page_of
from api.schemas import exports as schema
from api.schemas.base import Page
from pipelines.control import query
from pipelines.control.exports import manifest, request
from pipelines.control.exports.target import folder_of
from pipelines.jobs.errors import Conflict, InvalidParameter, MediaNotFound, NotFound
from pipelines.jobs.states import ExportState
from pipelines.store import exports as store
from pipelines.store.exports import Export
from pipelines.store.tenants import Principal

router = APIRouter(
    prefix="/v1/jobs/{job_id}/exports",
    tags=["exports"],
    route_class=StrictRoute,
    responses={**PROBLEMS, **problems(404)},
)


@router.post(
    "",
    operation_id="createExport",
    status_code=202,
    response_model=schema.Export,
    responses=problems(409),
    summary="Export the results",
)
async def create_export(
    http: Request,
    job_id: uuid.UUID,
    services: ServicesDep,
    caller: JobsWrite,
    body: schema.ExportRequest | None = None,
    key: IdempotencyKey = None,
) -> Response:
    """To an S3 prefix, or to the installation's own store. It starts when the job ends, or at once if it has."""
    del key  # declared for OpenAPI; read with the request
    wanted = body or schema.ExportRequest()

    def work(conn: Connection) -> Stored:
        made = request.request(conn, caller.tenant, job_id, wanted.options(), services.export_rules)
        return Stored(status=202, body=_shown(conn, caller, made))

    stored = await once(services, caller, http, wanted.model_dump(mode="json"), work)
    headers = {"Location": stored.body["links"]["self"], "Retry-After": "1"}
    if stored.replayed:
        headers["Idempotent-Replayed"] = "true"
    return JSONResponse(stored.body, status_code=stored.status, headers=headers)


@router.get("", operation_id="listExports", response_model=Page[schema.Export], summary="List a job's exports")
async def list_exports(
    *,
    job_id: uuid.UUID,
    services: ServicesDep,
    caller: JobsRead,
    after: Annotated[uuid.UUID | None, Query(description="`last_id` of the page before")] = None,
    limit: Limit = 20,
) -> Response:
    """Newest first."""

    def work(conn: Connection) -> list[dict[str, Any]]:
        found = store.listed(conn, caller.tenant_id, job_id, before=after, limit=limit + 1)
        return [
            _shown(conn, caller, export, total=total) for total in [_total(conn, caller, job_id)] for export in found
        ]

    shown = await services.transact(work)
    return JSONResponse(page_of(shown[:limit], "id", more=len(shown) > limit))


@router.get("/{export_id}", operation_id="getExport", response_model=schema.Export, summary="Read an export")
async def get_export(job_id: uuid.UUID, export_id: uuid.UUID, services: ServicesDep, caller: JobsRead) -> Response:
    """How far it is; it is whole once its state is `succeeded`, and not before."""
    shown = await services.transact(lambda conn: _shown(conn, caller, _found(conn, caller, job_id, export_id)))
    headers = {} if ExportState(shown["state"]).terminal else {"Retry-After": "2"}
    return JSONResponse(shown, headers=headers)


@router.post(
    "/{export_id}/cancel",
    operation_id="cancelExport",
    response_model=schema.Export,
    responses=problems(409),
    summary="Cancel an export",
)
async def cancel_export(job_id: uuid.UUID, export_id: uuid.UUID, services: ServicesDep, caller: JobsWrite) -> Response:
    """It ends now. Shards that it has written stay where they are, without a manifest."""
    shown = await services.transact(
        lambda conn: _shown(conn, caller, request.cancel(conn, caller.tenant_id, job_id, export_id))
    )
    return JSONResponse(shown)


@router.get(
    "/{export_id}/content",
    operation_id="getExportContent",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/octet-stream": {}}, "description": "its bytes"}, **problems(409)},
    summary="Download a part of an export",
)
async def get_export_content(
    job_id: uuid.UUID,
    export_id: uuid.UUID,
    services: ServicesDep,
    caller: JobsRead,
    name: Annotated[str, Query(min_length=1, max_length=512, description="as the manifest has it")] = manifest.NAME,
) -> StreamingResponse:
    """The manifest, or what it names, of an export in the installation's own store."""
    found = await services.transact(lambda conn: _found(conn, caller, job_id, export_id))
    if found.options.url is not None:
        raise Conflict("this export lies in your own bucket; read it there")
    if found.state is not ExportState.SUCCEEDED:
        raise Conflict(f"the export is {found.state}; it can be read once it has succeeded")
    folder = folder_of(found.tenant_id, found.job_id, found.export_id, own=True)
    try:
        size = (await services.in_thread(lambda: services.blobs.stat(folder + name))).size
        stream = await services.in_thread(lambda: services.blobs.stream(folder + name))
    except (MediaNotFound, InvalidParameter) as error:
        raise NotFound("the export has no object of this name; see its manifest.json") from error
    headers = {"Content-Length": str(size), "X-Content-Type-Options": "nosniff"}
    return StreamingResponse(stream, media_type="application/octet-stream", headers=headers)


def _found(conn: Connection, caller: Principal, job_id: uuid.UUID, export_id: uuid.UUID) -> Export:
    found = store.get(conn, caller.tenant_id, job_id, export_id)
    if found is None:
        raise NotFound("the job has no such export")
    return found


def _total(conn: Connection, caller: Principal, job_id: uuid.UUID) -> int:
    view = query.read_job(conn, caller.tenant_id, job_id)
    if view is None:
        raise NotFound("there is no such job")
    return view.job.item_count


def _shown(conn: Connection, caller: Principal, export: Export, *, total: int | None = None) -> dict[str, Any]:
    known = _total(conn, caller, export.job_id) if total is None else total
    return views.export(export, total=known).model_dump(mode="json")
