"""A deterministic engine without a model: the answer is a pure function of the request. Free of torch.

For the tests of everything around the engine, and for load tests of the pipeline. The answer names the hash of the
medium and of the question, so that a test can prove that no answer went to another item.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipelines.engine.errors import BadRequest, EmptyPrompt, EngineStopped, PromptTooLong, RequestCancelled
from pipelines.engine.guard import EVERY, repeating
from pipelines.engine.handle import PendingHandle
from pipelines.engine.params import check_params
from pipelines.engine.types import (
    Accepts,
    Completion,
    EngineInfo,
    EngineRequest,
    EngineStats,
    FinishReason,
    Handle,
    OnText,
    Tiles,
)


def fake_answer(request: EngineRequest) -> str:
    """Return the answer to a request, before it is cut to `max_new_tokens` words."""
    asked = "\n".join([*(f"{user}\n{answer}" for user, answer in request.history), request.question])
    digest = hashlib.sha256(asked.encode()).hexdigest()[:16]
    tiles = len(request.media.pixels) if isinstance(request.media, Tiles) else 0
    return f"media {request.media_hash or 'none'} question {digest} tiles {tiles}"


@dataclass(frozen=True, kw_only=True)
class FakeOptions:
    """What the fake pretends. Seconds are slept for each request, and for each token on top.

    `answer` and `mean_logprob` are functions of the request alone, so that a test can say what a content is worth.
    """

    model: str = "fake"
    slots: int = 16
    seconds: float = 0.0
    seconds_a_token: float = 0.0
    accepts: Accepts = Accepts.TILES
    image_size: int = 448
    tokens_per_tile: int = 256
    context_length: int = 32768
    continues: bool = True
    answer: Callable[[EngineRequest], str] = fake_answer
    mean_logprob: Callable[[EngineRequest], float | None] = lambda _: -0.1


class FakeEngine:
    """Meets `Engine`. A word is a token."""

    def __init__(self, options: FakeOptions | None = None) -> None:
        self._options = options or FakeOptions()
        self._pool = ThreadPoolExecutor(self._options.slots, thread_name_prefix="fake-engine")
        self._lock = threading.Lock()
        self._open: dict[int, PendingHandle] = {}
        self._numbers = itertools.count()
        self._stopping = threading.Event()
        self._running = self._steps = self._generated = self._prefilled = self._tiles = 0

    @property
    def info(self) -> EngineInfo:
        """What runs here."""
        options = self._options
        return EngineInfo(
            model=options.model,
            weights_hash=hashlib.sha256(b"fake").hexdigest(),
            accepts=options.accepts,
            slots=options.slots,
            context_length=options.context_length,
            image_size=options.image_size,
            tokens_per_tile=options.tokens_per_tile,
            device="none",
            dtype="none",
            attention="none",
            trained=False,
            continues=options.continues,
        )

    def submit(self, request: EngineRequest, *, on_text: OnText | None = None) -> Handle:
        """Queue a request; see `Engine.submit`."""
        check_params(request.params)
        if request.prefix is not None and not self._options.continues:
            raise BadRequest("this engine cannot go on with an answer", param="prefix")
        prompt_tokens = self._check(request)
        woken = threading.Event()
        handle = PendingHandle(request.request_id, on_text=on_text, on_cancel=woken.set)
        with self._lock:
            if self._stopping.is_set():
                raise EngineStopped("the engine has stopped")
            number = next(self._numbers)
            self._open[number] = handle
            self._pool.submit(self._answer, number, request, handle, woken, prompt_tokens, time.monotonic())
        return handle

    def stats(self) -> EngineStats:
        """A consistent snapshot."""
        with self._lock:
            return EngineStats(
                waiting=len(self._open) - self._running,
                running=self._running,
                steps=self._steps,
                generated_tokens=self._generated,
                prefilled_tokens=self._prefilled,
                tiles=self._tiles,
            )

    def healthy(self) -> bool:
        """True until it is closed."""
        return not self._stopping.is_set()

    def close(self, *, timeout: float = 30.0) -> None:  # noqa: ARG002 - nothing here can hang
        """Stop: unanswered requests end in `EngineStopped`."""
        with self._lock:
            self._stopping.set()
            left = list(self._open.values())
        for handle in left:
            handle.fail(EngineStopped("the engine was closed"))
            handle.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _check(self, request: EngineRequest) -> int:
        media, options = request.media, self._options
        tiles = 0
        if isinstance(media, Tiles):
            tiles = len(media.pixels)
            if options.accepts is not Accepts.TILES:
                raise BadRequest("this engine takes encoded images, not tiles", param="media")
            if not tiles or sum(media.counts) != tiles or len(media.digests) != len(media.counts):
                raise BadRequest("the tile counts do not add up to the tiles", param="media")
        elif media is not None:
            if options.accepts is not Accepts.IMAGES:
                raise BadRequest("this engine takes tiles, not encoded images", param="media")
            if not media.images:
                raise BadRequest("no image was given", param="media")
        if not request.question.strip() and media is None:
            raise EmptyPrompt("the question is empty and there is no image")
        words = sum(len(text.split()) for pair in request.history for text in pair) + len(request.question.split())
        words += len(request.prefix.text.split()) if request.prefix else 0
        total = words + tiles * options.tokens_per_tile
        if total >= options.context_length:
            raise PromptTooLong(f"the prompt has {total} tokens, more than the {options.context_length - 1} that fit")
        return total

    def _answer(
        self,
        number: int,
        request: EngineRequest,
        handle: PendingHandle,
        woken: threading.Event,
        prompt_tokens: int,
        submitted: float,
    ) -> None:
        with self._lock:
            self._running += 1
        started = time.monotonic()
        first: float | None = None
        try:
            woken.wait(self._options.seconds)
            words = request.prefix.text.split() if request.prefix else []
            given = len(words)
            reason = FinishReason.STOP
            for word in self._options.answer(request).split()[given:]:
                if len(words) - given >= request.params.max_new_tokens:
                    reason = FinishReason.LENGTH
                    break
                woken.wait(self._options.seconds_a_token)
                if handle.cancelled:
                    handle.fail(RequestCancelled("the request was cancelled"))
                    return
                first = first or time.monotonic()
                handle.emit(f" {word}" if words else word)
                words.append(word)
                if len(words) % EVERY == 0 and repeating([_token(each) for each in words]):
                    reason = FinishReason.DEGENERATE
                    break
                text = " ".join(words)
                if cut := [at for stop in request.params.stop if (at := text.find(stop)) >= 0]:
                    words, reason = text[: min(cut)].split(), FinishReason.STOP
                    break
            now = time.monotonic()
            handle.succeed(
                Completion(
                    request_id=request.request_id,
                    text=" ".join(words),
                    finish_reason=reason,
                    token_ids=tuple(map(_token, words)),
                    prompt_tokens=prompt_tokens,
                    cached_tokens=0,
                    completion_tokens=len(words) - given,
                    tiles=len(request.media.pixels) if isinstance(request.media, Tiles) else 0,
                    mean_logprob=self._options.mean_logprob(request),
                    media_hash=request.media_hash,
                    degenerate=reason is FinishReason.DEGENERATE,
                    queue_seconds=started - submitted,
                    first_token_seconds=(first or now) - submitted,
                    total_seconds=now - submitted,
                    device_seconds=now - started,
                )
            )
            with self._lock:
                self._generated += len(words) - given
        finally:
            with self._lock:
                self._open.pop(number, None)
                self._running -= 1
                self._steps += 1
                self._prefilled += prompt_tokens
                self._tiles += len(request.media.pixels) if isinstance(request.media, Tiles) else 0


def _token(word: str) -> int:
    return int(hashlib.sha256(word.encode()).hexdigest()[:4], 16)
