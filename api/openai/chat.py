"""`POST /v1/chat/completions`: a job of kind `chat` at interactive priority, answered when it ends or as it is made.

There is no second way to the engine: the request goes through the queue like everything else, so that priority,
fairness, leases and retries hold for it too. A client that goes away cancels its job.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import structlog
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from sqlalchemy import Connection

from api.dependencies import JobsWrite, ServicesDep
from api.documentation import PROBLEMS, problems
from api.errors import body_of, status_of
from api.jsonbody import StrictRoute
from api.openai.models import require_model
from api.openai.pieces import Pieces, Spoken, subscribed
from api.services import Services
from pipelines.control import cancel, query
from pipelines.control.query import ResultView
from pipelines.jobs.errors import BatchsightError, JobNotCancellable, ServiceUnavailable
from pipelines.jobs.ids import uuid7
from pipelines.jobs.models import JobPriority
from pipelines.jobs.states import ItemState
from pipelines.steps.chat_request import ChatRequest
from pipelines.steps.conversation import Conversation, InlineMedium, conversation_of
from pipelines.steps.inline import keep_inline
from pipelines.steps.submit import Submission, submit
from pipelines.store.tenants import Principal

router = APIRouter(prefix="/v1", tags=["openai"], route_class=StrictRoute, responses=PROBLEMS)

_log = structlog.get_logger(__name__)
_LOOK_SECONDS = 1.0  # between looks at the database while nothing is heard
_LONGEST = timedelta(minutes=10)
_FINISH = {"length": "length"}


class AnswerFailed(BatchsightError):
    """The item ended without an answer; `code` is the item's own."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code  # type: ignore[misc]  # of this error, not of the class


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question on its way."""

    job_id: uuid.UUID
    caller: Principal
    model: str
    created: int

    @property
    def completion_id(self) -> str:
        """The id that clients see."""
        return f"chatcmpl-{self.job_id.hex}"


@router.post(
    "/chat/completions",
    operation_id="createChatCompletion",
    response_class=Response,
    responses={
        200: {
            "description": "a chat completion, or its chunks as server-sent events",
            "content": {"application/json": {}, "text/event-stream": {}},
        },
        **problems(404, 409, 413),
    },
    summary="Chat (OpenAI)",
)
async def create_chat_completion(
    request: Request, body: ChatRequest, services: ServicesDep, caller: JobsWrite
) -> Response:
    """Text, images, videos and history; with `stream` the text comes as it is made."""
    require_model(services.settings, body.model)
    conversation = conversation_of(body)
    asked = Asked(job_id=uuid7(), caller=caller, model=body.model, created=int(time.time()))
    if body.stream:
        # What is wrong with the request is still told by its status: the stream begins once the job is committed.
        pieces = subscribed(services.redis, asked.job_id, 0)
        opened = await pieces.__aenter__()
        try:
            await _submit(services, asked, conversation, body.notes)
        except BaseException:
            await pieces.__aexit__(None, None, None)
            raise
        usage = bool(body.stream_options and body.stream_options.include_usage)
        return StreamingResponse(
            _events(services, asked, opened, pieces, usage=usage),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )
    async with subscribed(services.redis, asked.job_id, 0) as opened:
        await _submit(services, asked, conversation, body.notes)
        result = await _unless_gone(request, services, asked, opened)
    return JSONResponse(_completion(asked, result))


async def _submit(services: Services, asked: Asked, conversation: Conversation, notes: dict[str, Any]) -> None:
    tenant = asked.caller.tenant
    stored = [
        await _kept(services, asked.caller, medium) if isinstance(medium, InlineMedium) else medium
        for medium in conversation.media
    ]
    source = {"type": "media", "media": [{"url": url} for url in stored]} if stored else {"type": "none"}
    submission = Submission(
        kind="chat",
        parameters={**conversation.parameters, "stream": True},
        source=source,
        priority=JobPriority.INTERACTIVE,
        metadata=notes,
        deadline_at=datetime.now(UTC) + _LONGEST,
    )
    rules = services.submit_rules
    accepted = await services.transact(lambda conn: submit(conn, tenant, submission, rules, job_id=asked.job_id))
    services.metrics.submitted.labels("chat").inc()
    if not accepted.planned:
        await services.hint_plan(asked.job_id, interactive=True)


async def _kept(services: Services, caller: Principal, medium: InlineMedium) -> str:
    return await services.in_thread(lambda: keep_inline(services.database, services.blobs, caller.tenant_id, medium))


async def _unless_gone(request: Request, services: Services, asked: Asked, pieces: Pieces) -> ResultView:
    """The answer; a client that hangs up, or an error here, cancels the job at once."""
    answer = asyncio.ensure_future(_answered(services, asked, pieces))
    gone = asyncio.ensure_future(_hung_up(request))
    result: ResultView | None = None
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise AnswerFailed("request_cancelled", "the client went away")
        result = answer.result()
        return result
    finally:
        for task in (answer, gone):
            task.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.gather(answer, gone, return_exceptions=True)
            if result is None:
                await _cancel(services, asked)


async def _answered(services: Services, asked: Asked, pieces: Pieces) -> ResultView:
    while True:
        piece = await pieces.next(_LOOK_SECONDS)
        if (piece is None or piece.ended) and (result := await _ended(services, asked)) is not None:
            return result


async def _hung_up(request: Request) -> None:
    """Returns once the client has closed its connection; the body has been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(
    services: Services, asked: Asked, pieces: Pieces, subscription: Any, *, usage: bool
) -> AsyncIterator[str]:
    spoken = Spoken()
    result: ResultView | None = None
    try:
        yield _chunk(asked, {"role": "assistant", "content": ""})
        while result is None:
            piece = await pieces.next(_LOOK_SECONDS)
            if piece is not None and (text := spoken.hear(piece)):
                yield _chunk(asked, {"content": text})
            if piece is None or piece.ended:
                result = await _ended(services, asked)
        rest = spoken.finish(result.text or "")
        if rest is None:
            raise AnswerFailed("answer_changed", "the answer was made anew after part of it was sent; ask again")
        if rest:
            yield _chunk(asked, {"content": rest})
        yield _chunk(asked, {}, finish=_finish(result))
        if usage:
            yield _event({**_envelope(asked, "chat.completion.chunk"), "choices": [], "usage": _usage(result)})
        yield "data: [DONE]\n\n"
    except BatchsightError as error:
        _log.warning("stream_failed", job_id=str(asked.job_id), code=error.code)
        problem = body_of(
            status=status_of(error.code),
            code=error.code,
            message=error.message,
            param=error.param,
            instance="/v1/chat/completions",
        )
        yield _event({"error": problem["error"]})
    finally:
        with anyio.CancelScope(shield=True):
            if result is None:
                await _cancel(services, asked)
            await subscription.__aexit__(None, None, None)


async def _ended(services: Services, asked: Asked) -> ResultView | None:
    """The result once there is one; None while the item goes on. Raises `AnswerFailed`."""

    def look(conn: Connection) -> ResultView | None:
        found = query.read_result(conn, asked.caller.tenant_id, asked.job_id, 0)
        if found is None:
            view = query.read_job(conn, asked.caller.tenant_id, asked.job_id)
            if view is not None and view.job.state.terminal:
                reason = view.job.error_code or f"job_{view.job.state}"
                raise AnswerFailed(reason, view.job.error_message or f"the request was {view.job.state}")
        return found

    try:
        found = await services.transact(look)
    except ServiceUnavailable as error:
        _log.warning("answer_look_failed", job_id=str(asked.job_id), error=repr(error))
        return None
    if found is not None and found.state is not ItemState.SUCCEEDED:
        raise AnswerFailed(
            found.error_code or "request_cancelled", found.error_message or f"the request was {found.state}"
        )
    return found


async def _cancel(services: Services, asked: Asked) -> None:
    with anyio.CancelScope(shield=True):
        try:
            await services.transact(lambda conn: cancel.request(conn, asked.caller.tenant_id, asked.job_id))
        except (JobNotCancellable, ServiceUnavailable):
            return
        except BatchsightError:
            return  # it was never committed
        await services.hint_cancel(asked.job_id)


def _completion(asked: Asked, result: ResultView) -> dict[str, Any]:
    message = {"role": "assistant", "content": result.text or "", "refusal": None}
    return {
        **_envelope(asked, "chat.completion"),
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": _finish(result)}],
        "usage": _usage(result),
    }


def _chunk(asked: Asked, delta: dict[str, Any], *, finish: str | None = None) -> str:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return _event({**_envelope(asked, "chat.completion.chunk"), "choices": [choice]})


def _envelope(asked: Asked, kind: str) -> dict[str, Any]:
    return {"id": asked.completion_id, "object": kind, "created": asked.created, "model": asked.model}


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _finish(result: ResultView) -> str:
    return _FINISH.get(result.finish_reason or "", "stop")


def _usage(result: ResultView) -> dict[str, Any]:
    return {
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": result.completion_tokens,
        "total_tokens": result.prompt_tokens + result.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": result.cached_tokens},
    }
