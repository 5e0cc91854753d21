"""INFER: prepared pixels and the kind's questions become an answer.

Reads as one line: load the pack, look for an earlier answer, ask the questions, wait, parse, record. It holds no
transaction and knows no queue; the caller has claimed the item and will write the outcome. Answers are bound to their
medium: each completion carries the media hash of the request that it answers, and a mismatch is refused here, before
anything is stored.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from pipelines.engine.errors import RequestCancelled
from pipelines.engine.types import (
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
from pipelines.kinds.base import Dialogue, KindParameters, MediumView, Output
from pipelines.steps.abort import Abort, AbortReason
from pipelines.steps.answers import AnswerShelf, taken
from pipelines.steps.answers import key_of as answer_key

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
    dialogue = kind.dialogue(parameters, pack.views)
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
    asker = _Asker(item=item, spec=spec, parameters=parameters, pack=pack, tools=tools, abort=abort)
    answers = asker.ask(dialogue, on_text=on_text)
    for answer in answers:
        if answer.media_hash != item.media_hash:
            raise InternalError("an answer came back for another medium than the one asked about")
    return _result(item, spec, tools, parameters, kind.parse(parameters, answers), answers, key=key)


@dataclass(frozen=True, kw_only=True)
class _Asker:
    """Puts the questions of one item to the engine."""

    item: ClaimedItem
    spec: JobSpec
    parameters: KindParameters
    pack: LoadedPack
    tools: InferTools
    abort: Abort

    def ask(self, dialogue: Dialogue, *, on_text: OnText | None) -> tuple[Completion, ...]:
        until = time.monotonic() + self.tools.item_seconds
        if not dialogue.conversation:
            handles = [
                self._submit(dialogue, index, question, dialogue.history, on_text=on_text)
                for index, question in enumerate(dialogue.questions)
            ]
            return tuple(self._wait(handle, until) for handle in handles)
        history = dialogue.history
        answers: list[Completion] = []
        for index, question in enumerate(dialogue.questions):
            answer = self._wait(self._submit(dialogue, index, question, history, on_text=on_text), until)
            answers.append(answer)
            history = (*history, (question, answer.text))
        return tuple(answers)

    def _submit(
        self,
        dialogue: Dialogue,
        index: int,
        question: str,
        history: tuple[tuple[str, str], ...],
        *,
        on_text: OnText | None,
    ) -> Handle:
        item = self.item
        handle = self.tools.engine.submit(
            EngineRequest(
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
            ),
            on_text=on_text,
        )
        self.abort.on_fire(handle.cancel)
        return handle

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
    answers: tuple[Completion, ...],
    *,
    key: str | None,
) -> ItemResult:
    info = tools.engine.info
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
        "tokens_saved": sum(answer.tokens_saved for answer in answers),
    }
    if key is not None:
        provenance["answer_key"] = key
    return ItemResult(
        text=output.text,
        output=dict(output.data),
        flags=output.flags,
        finish_reason=_worst_finish(answers),
        media_hash=item.media_hash or "",
        prompt_tokens=sum(answer.prompt_tokens for answer in answers),
        cached_tokens=sum(answer.cached_tokens for answer in answers),
        completion_tokens=sum(answer.completion_tokens for answer in answers),
        tiles=max((answer.tiles for answer in answers), default=0),
        device_seconds=sum(answer.device_seconds for answer in answers),
        mean_logprob=sum(value * count for value, count in logprobs) / tokens if tokens else None,
        provenance=provenance,
    )


def _worst_finish(answers: tuple[Completion, ...]) -> str:
    reasons = {answer.finish_reason.value for answer in answers}
    return next((reason for reason in ("degenerate", "length", "stop") if reason in reasons), "stop")
