"""Items of a job, and what the model saw of one."""

from __future__ import annotations

import uuid
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response
from fastapi.responses import JSONResponse
from sqlalchemy import Connection

from api import views
from api.contact_sheet import draw
from api.dependencies import JobsRead, Limit, ServicesDep
from api.documentation import PROBLEMS, problems
from api.routes.jobs import page_of
from api.schemas import jobs as schema
from api.schemas.base import Page
from pipelines.control import query
from pipelines.control.query import ItemView, ResultView
from pipelines.jobs.errors import Conflict, MediaNotFound, NotFound
from pipelines.jobs.states import ItemState
from pipelines.media.pack import decode
from pipelines.store import jobs
from pipelines.store.tenants import Principal

router = APIRouter(prefix="/v1/jobs/{job_id}/items", tags=["items"], responses={**PROBLEMS, **problems(404)})

_MOST_TILES = 512
Seq = Annotated[int, Path(ge=0, le=2**53, description="the item's number in its job, from 0")]


@router.get("", operation_id="listItems", response_model=Page[schema.Item], summary="List a job's items")
async def list_items(
    *,
    job_id: uuid.UUID,
    services: ServicesDep,
    caller: JobsRead,
    state: Annotated[list[ItemState] | None, Query(description="only these states")] = None,
    code: Annotated[str | None, Query(max_length=100, description="only failed items with this error code")] = None,
    after: Annotated[int, Query(ge=-1, le=2**53, description="`last_id` of the page before")] = -1,
    limit: Limit = 100,
) -> Response:
    """In the order of the source; the texts are in the results."""

    def work(conn: Connection) -> tuple[ItemView, ...]:
        require_job(conn, caller, job_id)
        return query.list_items(
            conn, caller.tenant_id, job_id, states=state or (), code=code, after=after, limit=limit + 1
        )

    found = await services.transact(work)
    shown = [views.item(view).model_dump(mode="json") for view in found[:limit]]
    return JSONResponse(page_of(shown, "seq", more=len(found) > limit))


@router.get("/{seq}", operation_id="getItem", response_model=schema.Item, summary="Read an item with its answer")
async def get_item(job_id: uuid.UUID, seq: Seq, services: ServicesDep, caller: JobsRead) -> Response:
    """State, attempts, error and times; the text once it has succeeded."""

    def work(conn: Connection) -> tuple[ItemView, ResultView | None]:
        item = _found(conn, caller, job_id, seq)
        ended = item.state is ItemState.SUCCEEDED
        return item, query.read_result(conn, caller.tenant_id, job_id, seq) if ended else None

    item, result = await services.transact(work)
    return JSONResponse(views.item(item, result).model_dump(mode="json"))


@router.get(
    "/{seq}/tiles",
    operation_id="getItemTiles",
    response_class=Response,
    responses={200: {"content": {"image/png": {}}, "description": "a contact sheet"}, **problems(409)},
    summary="See what the model saw",
)
async def get_item_tiles(job_id: uuid.UUID, seq: Seq, services: ServicesDep, caller: JobsRead) -> Response:
    """The tiles of an image or the sampled frames of a video, in order, as one picture."""
    item = await services.transact(lambda conn: _found(conn, caller, job_id, seq))
    if item.pack_key is None:
        raise Conflict(f"the item is {item.state}: its pixels are not prepared, so there is nothing to see")
    if (item.tiles or 0) > _MOST_TILES:
        raise Conflict(f"the item has {item.tiles} tiles; up to {_MOST_TILES} are drawn")
    key, checksum = item.pack_key, item.pack_sha256
    try:
        picture = await services.in_thread(lambda: draw(decode(services.blobs.get(key), checksum)))
    except MediaNotFound as error:
        raise Conflict("the prepared pixels have been collected; they are kept for a day after their use") from error
    return Response(picture, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})


def require_job(conn: Connection, caller: Principal, job_id: uuid.UUID) -> None:
    """Raises `NotFound` unless the job is the caller's."""
    if jobs.get_job(conn, caller.tenant_id, job_id) is None:
        raise NotFound("there is no such job")


def _found(conn: Connection, caller: Principal, job_id: uuid.UUID, seq: int) -> ItemView:
    item = query.read_item(conn, caller.tenant_id, job_id, seq)
    if item is None:
        raise NotFound("there is no such item")
    return item
