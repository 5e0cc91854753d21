"""Results: JSON Lines in flat memory, or the documents put together as Markdown or plain text."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Annotated, Literal, Protocol

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from api.dependencies import JobsRead, ServicesDep
from api.documentation import PROBLEMS, problems
from api.errors import NotAcceptable
from api.negotiation import best
from api.routes.items import require_job
from api.services import Services
from pipelines.control import query
from pipelines.control.lines import line_of
from pipelines.control.markdown import MarkdownWriter
from pipelines.control.plaintext import TextWriter
from pipelines.control.query import ENDED, SUCCEEDED, ResultView
from pipelines.jobs.states import ItemState
from pipelines.store.tenants import Principal
from pipelines.store.values import to_json

router = APIRouter(prefix="/v1/jobs/{job_id}/results", tags=["results"], responses=PROBLEMS)


class Writer(Protocol):
    """Puts documents together; fed with results in reading order."""

    def write(self, view: ResultView) -> str:
        """The text of one result."""


JSONL = "application/x-ndjson"
MARKDOWN = "text/markdown"
TEXT = "text/plain"
_WRITERS: dict[str, Callable[[], Writer]] = {MARKDOWN: MarkdownWriter, TEXT: TextWriter}
_OFFERS = (JSONL, "application/jsonl", "application/json", MARKDOWN, TEXT)
_BATCH = 500
_DOCUMENT_BATCH = 100


@router.get(
    "",
    operation_id="getResults",
    response_class=StreamingResponse,
    responses={
        200: {
            "content": {JSONL: {}, MARKDOWN: {}, TEXT: {}},
            "description": "one result a line, or each document's pages in order in one Markdown or plain text",
        },
        **problems(404, 406),
    },
    summary="Stream the results",
)
async def get_results(
    *,
    request: Request,
    job_id: uuid.UUID,
    services: ServicesDep,
    caller: JobsRead,
    include: Annotated[Literal["succeeded", "all"], Query(description="`all`: failed items too")] = "succeeded",
    after: Annotated[int, Query(ge=-1, le=2**53, description="only items behind this `seq`")] = -1,
    limit: Annotated[int | None, Query(ge=1, le=100_000, description="at most so many lines")] = None,
) -> StreamingResponse:
    """What has ended so far, in the order of the source; go on later with `after`. Works while the job runs."""
    chosen = best(request.headers.get("accept", "*/*"), _OFFERS)
    if chosen is None:
        raise NotAcceptable(f"results can be sent as {JSONL}, {MARKDOWN} or {TEXT}; change the Accept header")
    await services.transact(lambda conn: require_job(conn, caller, job_id))
    if chosen in _WRITERS:
        pages = _documents(services, caller, job_id, _WRITERS[chosen]())
        return StreamingResponse(pages, media_type=f"{chosen}; charset=utf-8")
    states = ENDED if include == "all" else SUCCEEDED
    lines = _lines(services, caller, job_id, states, after, limit)
    return StreamingResponse(lines, media_type=JSONL if chosen == "application/json" else chosen)


async def _lines(
    services: Services,
    caller: Principal,
    job_id: uuid.UUID,
    states: Sequence[ItemState],
    after: int,
    limit: int | None,
) -> AsyncIterator[str]:
    left = limit
    while left is None or left > 0:
        size = _BATCH if left is None else min(_BATCH, left)
        position = after
        batch = await services.transact(
            lambda conn, position=position, size=size: query.read_results(  # type: ignore[misc]  # defaults bind the loop's values
                conn, caller.tenant_id, job_id, states=states, after=position, limit=size
            )
        )
        if not batch:
            return
        cost = services.settings.gpu_second_cost
        yield "".join(to_json(line_of(view, gpu_second_cost=cost)) + "\n" for view in batch)
        after = batch[-1].seq
        if left is not None:
            left -= len(batch)
        if len(batch) < size:
            return


async def _documents(services: Services, caller: Principal, job_id: uuid.UUID, writer: Writer) -> AsyncIterator[str]:
    order = await services.transact(lambda conn: query.reading_order(conn, caller.tenant_id, job_id))
    for seqs in query.in_pages(order, _DOCUMENT_BATCH):
        batch = await services.transact(
            lambda conn, seqs=seqs: query.results_at(conn, caller.tenant_id, job_id, seqs)  # type: ignore[misc]
        )
        yield "".join(writer.write(view) for view in batch)
