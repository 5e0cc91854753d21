"""INFER: prepared pixels and the kind's questions become an answer.

Reads as one line: load the pack, look for an earlier answer, ask the questions, wait, pursue what is cut off or
doubtful, parse, record. It holds no transaction and knows no queue; the caller has claimed the item and will write the
outcome. Answers are bound to their medium: each completion carries the media hash of the request that it answers, and a
mismatch is refused here, before anything is stored. A page that PREPARE found blank is answered without the engine
where its kind says how.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from typing import Any, Protocol

import structlog

from pipelines.engine.errors import RequestCancelled
from pipelines.engine.types import (
    AnswerPrefix,
    Completion,
    EncodedImages,
    Engine,
    EngineRequest,
    Handle,
    Priority,
    Tiles,
)
from pipelines.jobs.errors import InternalError
from pipelines.jobs.models import ClaimedItem, ItemResult, JobSpec, PackRef
from pipelines.jobs.outcomes import Cancelled, Failed, Outcome, Released, Succeeded
from pipelines.jobs.retry import after_failure
from pipelines.kinds import registry
from pipelines.kinds.base import Dialogue, Effort, KindParameters, MediumView, Output
from pipelines.steps.abort import Abort, AbortReason
from pipelines.steps.answers import AnswerShelf, taken
from pipelines.steps.answers import key_of as answer_key
from pipelines.steps.pursue import Media, Pursuit, Reply, told

_log = structlog.get_logger(__name__)

OnText = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class LoadedPack:
    """A pack as the engine eats it, and what each medium in it is."""

    media: Tiles | EncodedImages | None
    views: tuple[MediumView, ...]


class PackLoader(Protocol):
    """Fetches and verifies a tile pack; raises `PackDamaged` where it is missing or does not match."""

    def load(self, pack: PackRef) -> LoadedPack:
        """The pack under this reference."""


@dataclass(frozen=True, kw_only=True)
class InferTools:
    """What INFER needs. `item_seconds`: an item may hold its slot no longer; `answers` None: every answer is fresh."""

    engine: Engine
    packs: PackLoader
    worker: str
    preprocessing_version: str
    answers: AnswerShelf | None = None
    item_seconds: float = 3_600.0
    uniform: Callable[[float, float], float] = random.uniform


def infer(
    item: ClaimedItem, spec: JobSpec, tools: InferTools, *, abort: Abort, on_text: OnText | None = None
) -> Outcome:
    """Answer one item. Every failure ends in an outcome; nothing is raised but what ends the process."""
    try:
        return Succeeded(result=_answer(item, spec, tools, abort=abort, on_text=on_text))
    except (RequestCancelled, CancelledError) as error:
        return _aborted(abort, item, error)
    except Exception as error:  # noqa: BLE001 - the boundary: any failure becomes a typed outcome
        _log.warning("infer_failed", job_id=str(item.job_id), seq=item.seq, attempt=item.attempt, exc_info=error)
        outcome = after_failure(error, fails=item.fails, uniform=tools.uniform)
        return _aborted(abort, item, error) if abort.reason else outcome


def _answer(item: ClaimedItem, spec: JobSpec, tools: InferTools, *, abort: Abort, on_text: OnText | None) -> ItemResult:
    if item.pack is None or item.media_hash is None:
        raise InternalError("the item has no prepared pixels")
    kind = registry.get(spec.kind)
    parameters = kind.parse_parameters({**spec.parameters, **item.document.overrides})
    pack = tools.packs.load(item.pack)
    if pack.views and all(view.blank for view in pack.views):
        blank = kind.blank(parameters)
        if blank is not None:
            return _result(item, spec, tools, parameters, replace(blank, flags=("blank",)), (), key=None)
    dialogue, effort = kind.dialogue(parameters, pack.views), kind.effort(parameters)
    key = None
    if tools.answers is not None and on_text is None:
        key = answer_key(
            item,
            spec,
            parameters,
            dialogue,
            tools.engine.info,
            preprocessing_version=tools.preprocessing_version,
            scope=tools.answers.scope,
        )
        found = tools.answers.find(spec.tenant_id, key=key, media_hash=item.media_hash) if key else None
        if found is not None:
            return taken(found, item, worker=tools.worker)
    asker = _Asker(item=item, spec=spec, parameters=parameters, pack=pack, effort=effort, tools=tools, abort=abort)
    replies = asker.ask(dialogue, on_text=on_text)
    for answer in (answer for reply in replies for answer in reply.asked):
        if answer.media_hash != item.media_hash:
            raise InternalError("an answer came back for another medium than the one asked about")
    output = kind.parse(parameters, tuple(reply.answer for reply in replies))
    return _result(item, spec, tools, parameters, told(output, replies, effort), replies, key=key)


@dataclass(frozen=True, kw_only=True)
class _Asker:
    """Puts the questions of one item to the engine."""

    item: ClaimedItem
    spec: JobSpec
    parameters: KindParameters
    pack: LoadedPack
    effort: Effort
    tools: InferTools
    abort: Abort

    def ask(self, dialogue: Dialogue, *, on_text: OnText | None) -> tuple[Reply, ...]:
        until = time.monotonic() + self.tools.item_seconds
        if not dialogue.conversation:
            requests = [
                self._request(dialogue, index, question, dialogue.history)
                for index, question in enumerate(dialogue.questions)
            ]
            handles = [self._submit(request, on_text=on_text) for request in requests]
            firsts = [self._wait(handle, until) for handle in handles]
            return tuple(
                self._pursuit(request, until, on_text=on_text).follow(first)
                for request, first in zip(requests, firsts, strict=True)
            )
        history = dialogue.history
        replies: list[Reply] = []
        for index, question in enumerate(dialogue.questions):
            request = self._request(dialogue, index, question, history)
            first = self._wait(self._submit(request, on_text=on_text), until)
            reply = self._pursuit(request, until, on_text=on_text).follow(first)
            replies.append(reply)
            history = (*history, (question, reply.answer.text))
        return tuple(replies)

    def _request(
        self, dialogue: Dialogue, index: int, question: str, history: tuple[tuple[str, str], ...]
    ) -> EngineRequest:
        item = self.item
        return EngineRequest(
            request_id=f"{item.job_id}/{item.seq}/{item.attempt}/{index}",
            question=question,
            history=history,
            system=dialogue.system,
            media=self.pack.media,
            params=self.parameters.generation.to_params(),
            priority=Priority(int(self.spec.priority)),
            group=str(self.spec.job_id),
            media_hash=item.media_hash or "",
            token_salt=str(self.spec.tenant_id),
        )

    def _submit(self, request: EngineRequest, *, on_text: OnText | None) -> Handle:
        handle = self.tools.engine.submit(request, on_text=on_text)
        self.abort.on_fire(handle.cancel)
        return handle

    def _pursuit(self, request: EngineRequest, until: float, *, on_text: OnText | None) -> Pursuit:
        def submit(media: Media, prefix: AnswerPrefix | None, name: str) -> Handle:
            again = replace(request, request_id=f"{request.request_id}/{name}", media=media, prefix=prefix)
            return self._submit(again, on_text=on_text)

        return Pursuit(
            # Text that was sent cannot be taken back: a page whose answer is streamed is not asked about again.
            effort=self.effort if on_text is None else replace(self.effort, turn=False),
            media=self.pack.media,
            views=self.pack.views,
            continues=self.tools.engine.info.continues,
            submit=submit,
            wait=lambda handle: self._wait(handle, until),
        )

    def _wait(self, handle: Handle, until: float) -> Completion:
        try:
            return handle.future.result(timeout=max(0.0, until - time.monotonic()))
        except TimeoutError:
            self.abort.fire(AbortReason.TIMED_OUT)
            raise


def _aborted(abort: Abort, item: ClaimedItem, error: BaseException) -> Outcome:
    match abort.reason:
        case AbortReason.CANCELLED:
            return Cancelled()
        case AbortReason.TIMED_OUT:
            return Failed(code="item_timed_out", message="the answer took longer than an item may take; ask for less")
        case None:
            # The engine cancelled on its own: it is going down, and the item is not to blame.
            _log.warning("engine_cancelled_request", job_id=str(item.job_id), seq=item.seq, error=repr(error))
            return Released(reason="engine")
        case reason:
            return Released(reason=reason.value)


def _result(
    item: ClaimedItem,
    spec: JobSpec,
    tools: InferTools,
    parameters: KindParameters,
    output: Output,
    replies: tuple[Reply, ...],
    *,
    key: str | None,
) -> ItemResult:
    info = tools.engine.info
    answers = tuple(reply.answer for reply in replies)
    asked = tuple(answer for reply in replies for answer in reply.asked)
    logprobs = [
        (answer.mean_logprob, answer.completion_tokens) for answer in answers if answer.mean_logprob is not None
    ]
    tokens = sum(count for _, count in logprobs)
    provenance: dict[str, Any] = {
        "model": info.model,
        "weights_hash": info.weights_hash,
        "trained": info.trained,
        "dtype": info.dtype,
        "attention": info.attention,
        "preprocessing": tools.preprocessing_version,
        "pack_sha256": item.pack.sha256 if item.pack else None,
        "kind": spec.kind,
        "parameters": parameters.model_dump(mode="json"),
        "attempt": item.attempt,
        "worker": tools.worker,
        "first_token_seconds": max((answer.first_token_seconds for answer in answers), default=0.0),
        "queue_seconds": max((answer.queue_seconds for answer in answers), default=0.0),
        "tokens_saved": sum(answer.tokens_saved for answer in asked),
        "requests": len(asked),
    }
    if key is not None:
        provenance["answer_key"] = key
    return ItemResult(
        text=output.text,
        output=dict(output.data),
        flags=output.flags,
        finish_reason=_worst_finish(answers),
        media_hash=item.media_hash or "",
        prompt_tokens=sum(answer.prompt_tokens for answer in asked),
        cached_tokens=sum(answer.cached_tokens for answer in asked),
        completion_tokens=sum(answer.completion_tokens for answer in asked),
        tiles=max((answer.tiles for answer in asked), default=0),
        device_seconds=sum(answer.device_seconds for answer in asked),
        mean_logprob=sum(value * count for value, count in logprobs) / tokens if tokens else None,
        provenance=provenance,
    )


def _worst_finish(answers: tuple[Completion, ...]) -> str:
    reasons = {answer.finish_reason.value for answer in answers}
    return next((reason for reason in ("degenerate", "length", "stop") if reason in reasons), "stop")
