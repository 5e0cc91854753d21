"""`/v1/batches`: a batch is a job of kind `chat` whose source is an uploaded file of requests.

Nothing is stored beside the job: a batch's status follows from the job's state, and its files are written as soon as it
has ended (`api.openai.batch_writer`; `finalizing` until they are there).
"""

from __future__ import annotations

import re
import uuid
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse
from pydantic import Field
from sqlalchemy import Connection

from api.dependencies import JobsRead, JobsWrite, ServicesDep
from api.documentation import PROBLEMS, problems
from api.ids import FileId, file_uuid, show_file, show_url
from api.jsonbody import StrictRoute
from api.openai import batch_output
from api.openai.answers import Batch, BatchList
from api.routes.jobs import page_of
from api.schemas.base import Request
from api.services import Services
from pipelines.control import cancel, query
from pipelines.control.query import JobView
from pipelines.jobs.batches import batch_end
from pipelines.jobs.errors import NotFound, RequestTooLarge
from pipelines.jobs.models import JobPriority
from pipelines.jobs.states import ItemState, JobState
from pipelines.steps.batch_file import ENDPOINT, BatchCheck, check_batch
from pipelines.steps.submit import Submission, submit
from pipelines.store import batch_endings, files, jobs, progress
from pipelines.store.tenants import Principal

router = APIRouter(prefix="/v1/batches", tags=["openai"], route_class=StrictRoute, responses=PROBLEMS)

_ID = re.compile(r"\Abatch_([0-9a-f]{32})\Z")
_MARK = "openai.batch"
_WINDOW = timedelta(hours=24)
_PLACEHOLDER = {"messages": [{"role": "user", "content": "-"}]}  # every line brings its own


class ExpiresAfter(Request):
    """When the output is deleted."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=3_600, le=2_592_000)


class BatchRequest(Request):
    """A file of requests, to be answered within a day."""

    input_file_id: FileId
    endpoint: Literal["/v1/chat/completions"]
    completion_window: Literal["24h"]
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None = Field(
        None, max_length=16
    )
    output_expires_after: ExpiresAfter | None = None


@router.post(
    "",
    operation_id="createBatch",
    response_model=Batch,
    responses=problems(404, 413),
    summary="Create a batch (OpenAI)",
)
async def create_batch(body: BatchRequest, services: ServicesDep, caller: JobsWrite) -> JSONResponse:
    """The form of the file is checked at once; a bad line makes a batch that has `failed`, with each problem named."""
    file_id = file_uuid(body.input_file_id)
    stored = await services.transact(lambda conn: files.get(conn, caller.tenant_id, file_id))
    if stored is None or stored.status == "pending":
        raise NotFound("there is no such file", param="input_file_id")
    if stored.size > services.settings.max_batch_bytes:
        limit = services.settings.max_batch_bytes
        raise RequestTooLarge(f"a batch file may have {limit} bytes; split it", param="input_file_id")
    model = services.settings.model_name
    checked = await services.in_thread(
        lambda: check_batch(services.blobs.stream(stored.blob_key), endpoint=body.endpoint, model=model)
    )
    submission = _submission(body, file_id, checked)
    view = await services.transact(lambda conn: _created(conn, services, caller, submission, checked))
    if not checked.problems:
        await services.hint_plan(view.job.job_id, interactive=False)
    return JSONResponse(_shown(services, view, written=True))


@router.get("", operation_id="listBatches", response_model=BatchList, summary="List batches (OpenAI)")
async def list_batches(
    services: ServicesDep,
    caller: JobsRead,
    after: Annotated[str | None, Query(pattern="^batch_[0-9a-f]{32}$")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> JSONResponse:
    """Newest first."""

    def work(conn: Connection) -> list[tuple[JobView, bool]]:
        found = jobs.list_jobs(
            conn,
            caller.tenant_id,
            limit=limit + 1,
            before=None if after is None else _uuid(after),
            source_type="batch",  # whoever puts the mark on another job has made no batch of it
            metadata={_MARK: "1"},
        )
        unwritten = batch_endings.unwritten(conn, [job.job_id for job in found])
        return [(JobView(job=job), job.job_id not in unwritten) for job in found]

    found = await services.transact(work)
    shown = [_shown(services, view, written=written) for view, written in found[:limit]]
    return JSONResponse(page_of(shown, "id", more=len(found) > limit))


@router.get(
    "/{batch_id}",
    operation_id="getBatch",
    response_model=Batch,
    responses=problems(404),
    summary="Read a batch (OpenAI)",
)
async def get_batch(batch_id: str, services: ServicesDep, caller: JobsRead) -> JSONResponse:
    """Its status and counts; its files once it has ended."""

    view, written = await services.transact(lambda conn: _found_and_written(conn, caller, batch_id))
    return JSONResponse(_shown(services, view, written=written))


@router.post(
    "/{batch_id}/cancel",
    operation_id="cancelBatch",
    response_model=Batch,
    responses=problems(404, 409),
    summary="Cancel a batch (OpenAI)",
)
async def cancel_batch(batch_id: str, services: ServicesDep, caller: JobsWrite) -> JSONResponse:
    """What has been answered is kept."""

    def work(conn: Connection) -> tuple[JobView, bool]:
        cancel.request(conn, caller.tenant_id, _found(conn, caller, batch_id).job.job_id)
        return _found_and_written(conn, caller, batch_id)

    view, written = await services.transact(work)
    await services.hint_cancel(view.job.job_id)
    return JSONResponse(_shown(services, view, written=written))


def _submission(body: BatchRequest, file_id: uuid.UUID, checked: BatchCheck) -> Submission:
    kept = body.output_expires_after
    return Submission(
        kind="chat",
        parameters=_PLACEHOLDER,
        source={
            "type": "batch",
            "url": f"upload:{file_id}",
            "lines": checked.lines,
            "problems": [problem.to_json() for problem in checked.problems],
            "completion_window": body.completion_window,
            "kept_seconds": kept.seconds if kept else None,
        },
        priority=JobPriority.BULK,
        metadata={**(body.metadata or {}), _MARK: "1"},
        deadline_at=datetime.now(UTC) + _WINDOW,
    )


def _created(
    conn: Connection, services: Services, caller: Principal, submission: Submission, checked: BatchCheck
) -> JobView:
    job_id = submit(conn, caller.tenant, submission, services.submit_rules).job_id
    if checked.problems:
        lease = jobs.claim_plan(conn, job_id, worker="api", lease=60.0)
        if lease is not None:
            first = checked.problems[0]
            jobs.fail_plan(conn, lease, code="invalid_batch_file", message=first.message)
            progress.finalise(conn, job_id)
    view = query.read_job(conn, caller.tenant_id, job_id)
    if view is None:
        raise NotFound("there is no such batch")
    return view


def _found(conn: Connection, caller: Principal, batch_id: str) -> JobView:
    view = query.read_job(conn, caller.tenant_id, _uuid(batch_id))
    if view is None or view.job.source.get("type") != "batch":
        raise NotFound("there is no such batch")
    return view


def _found_and_written(conn: Connection, caller: Principal, batch_id: str) -> tuple[JobView, bool]:
    view = _found(conn, caller, batch_id)
    return view, not batch_endings.unwritten(conn, [view.job.job_id])


def _status(view: JobView, *, written: bool) -> str:
    job = view.job
    if job.source["problems"]:
        return "failed"
    if job.state is JobState.QUEUED:
        return "validating"
    if not job.state.terminal:
        return "cancelling" if job.cancel_requested_at else "in_progress"
    if not written:
        return "cancelling" if job.state is JobState.CANCELLED else "finalizing"
    return batch_end(
        refused=False, state=job.state, error_code=job.error_code, ended=view.ended, errors=job.errors
    ).value


def _shown(services: Services, view: JobView, *, written: bool) -> dict[str, Any]:
    job = view.job
    status = _status(view, written=written)
    files_of = batch_output.wanted(view) if job.state.terminal and written else ()
    ended = _unix(job.finished_at)
    problems_found = list(job.source["problems"])
    if status == "failed" and not problems_found:
        problems_found = [{"code": job.error_code, "line": None, "message": job.error_message, "param": None}]
    spent = job.usage
    shown = Batch(
        id=f"batch_{job.job_id.hex}",
        endpoint=ENDPOINT,
        model=services.settings.model_name,
        input_file_id=show_url(job.source["url"]),
        completion_window=job.source["completion_window"],
        status=status,
        created_at=_unix(job.created_at) or 0,
        errors={"object": "list", "data": problems_found} if problems_found else None,
        output_file_id=show_file(batch_output.file_id_of(job.job_id, "output")) if "output" in files_of else None,
        error_file_id=show_file(batch_output.file_id_of(job.job_id, "error")) if "error" in files_of else None,
        in_progress_at=None if status == "failed" else _unix(job.started_at),
        expires_at=_unix(job.deadline_at),
        finalizing_at=ended if status in {"finalizing", "completed", "expired"} else None,
        completed_at=ended if status == "completed" else None,
        failed_at=ended if status == "failed" else None,
        expired_at=ended if status == "expired" else None,
        cancelling_at=_unix(job.cancel_requested_at),
        cancelled_at=ended if status == "cancelled" else None,
        metadata={name: str(value) for name, value in job.metadata.items() if name != _MARK} or None,
        request_counts={
            "total": max(job.item_count, 0 if problems_found else int(job.source["lines"])),
            "completed": job.counts.get(ItemState.SUCCEEDED, 0),
            "failed": job.counts.get(ItemState.FAILED, 0) + job.counts.get(ItemState.CANCELLED, 0),
        },
        usage={
            "input_tokens": spent.get("prompt_tokens", 0),
            "input_tokens_details": {"cached_tokens": spent.get("cached_tokens", 0)},
            "output_tokens": spent.get("completion_tokens", 0),
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": spent.get("prompt_tokens", 0) + spent.get("completion_tokens", 0),
        },
    )
    return shown.model_dump(mode="json")


def _uuid(batch_id: str) -> uuid.UUID:
    match = _ID.match(batch_id)
    if match is None:
        raise NotFound("there is no such batch; batch ids look like batch_0123…")
    return uuid.UUID(match[1])


def _unix(at: datetime | None) -> int | None:
    return None if at is None else int(at.timestamp())
