"""An OpenAI-compatible server as an engine: LMDeploy's api_server (the model card's own route), vLLM, or this project.

The page image or the sampled frames go as `data:` URLs, never tiles: such a server tiles by itself, refuses private
addresses, and might open `file:` ones. A small pool of threads bounds the requests in flight. Every answer is
streamed, so that a cancellation ends the work on the server too.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import httpx2

from pipelines.engine.errors import (
    BadRequest,
    EmptyPrompt,
    EngineStopped,
    RemoteRefused,
    RemoteUnavailable,
    RequestCancelled,
)
from pipelines.engine.handle import PendingHandle
from pipelines.engine.params import check_params
from pipelines.engine.remote_wire import Answer, build_body, read_answer
from pipelines.engine.types import (
    Accepts,
    Completion,
    EncodedImages,
    EngineInfo,
    EngineRequest,
    EngineStats,
    FinishReason,
    Handle,
    OnText,
)
from pipelines.jobs.errors import EngineError

_TRANSIENT = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, kw_only=True)
class RemoteOptions:
    """How to reach a server. Times in seconds.

    Args:
        url: the server's address, with or without `/v1`.
        model: model id there; None or empty: the first of its list.
        api_key: bearer key.
        slots: requests in flight.
        connect_seconds: until a connection stands. read_seconds: the longest silence of the server.
        attempts: tries of one request where the server fails or asks to wait.
        longest_wait: a `Retry-After` above this ends the request, with the wish in the error.
        video: frames as one image part each, or as one `data:video/jpeg` part (vLLM and this project read that).
        extensions: send `top_k` and `repetition_penalty`, which OpenAI's own API does not have.
        continues: the server goes on with an assistant message that comes last (LMDeploy does; vLLM does when told,
            which it is; OpenAI's own API and others begin a new turn). Nothing in an answer shows which happened.
    """

    url: str
    model: str | None = None
    api_key: str | None = None
    slots: int = 16
    connect_seconds: float = 10.0
    read_seconds: float = 300.0
    attempts: int = 4
    longest_wait: float = 60.0
    video: Literal["images", "jpeg_frames"] = "images"
    extensions: bool = True
    continues: bool = False
    context_length: int = 32768


class RemoteEngine:
    """Meets `Engine` over HTTP. `RemoteUnavailable` or `RemoteRefused` where the server cannot even list its models."""

    def __init__(self, options: RemoteOptions) -> None:
        self._options = options
        base = options.url.rstrip("/")
        self._client = httpx2.Client(
            base_url=base if base.endswith("/v1") else f"{base}/v1",
            headers={"Authorization": f"Bearer {options.api_key}"} if options.api_key else {},
            timeout=httpx2.Timeout(options.read_seconds, connect=options.connect_seconds),
            limits=httpx2.Limits(max_connections=options.slots + 1),
        )
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._open: dict[int, PendingHandle] = {}
        self._numbers = itertools.count()
        self._not_before = 0.0
        self._running = self._answered = self._generated = self._prefilled = 0
        try:
            model = options.model or self._first_model()
        except EngineError:
            self._client.close()
            raise
        self._info = EngineInfo(
            model=model,
            weights_hash=hashlib.sha256(f"{base} {options.model}".encode()).hexdigest(),
            accepts=Accepts.IMAGES,
            slots=options.slots,
            context_length=options.context_length,
            image_size=448,
            tokens_per_tile=256,
            device=base,
            dtype="remote",
            attention="remote",
            continues=options.continues,
        )
        self._pool = ThreadPoolExecutor(options.slots, thread_name_prefix="remote-engine")

    @property
    def info(self) -> EngineInfo:
        """What runs there. `weights_hash` names the address and the model: the server does not tell its weights."""
        return self._info

    def submit(self, request: EngineRequest, *, on_text: OnText | None = None) -> Handle:
        """Queue a request; see `Engine.submit`."""
        check_params(request.params)
        if request.media is not None and not isinstance(request.media, EncodedImages):
            raise BadRequest("this engine takes encoded images, not tiles", param="media")
        if request.media is not None and not request.media.images:
            raise BadRequest("no image was given", param="media")
        if not request.question.strip() and request.media is None:
            raise EmptyPrompt("the question is empty and there is no image")
        options = self._options
        if request.prefix is not None and not options.continues:
            raise BadRequest("this engine cannot go on with an answer", param="prefix")
        body = build_body(request, model=self._info.model, video=options.video, extensions=options.extensions)
        cancelled = threading.Event()

        def cancel() -> None:
            cancelled.set()
            handle.fail(RequestCancelled("the request was cancelled"))

        handle = PendingHandle(request.request_id, on_text=on_text, on_cancel=cancel)
        with self._lock:
            if self._closing.is_set():
                raise EngineStopped("the engine has stopped")
            number = next(self._numbers)
            self._open[number] = handle
            self._pool.submit(self._work, number, request, body, handle, cancelled, time.monotonic())
        return handle

    def stats(self) -> EngineStats:
        """A consistent snapshot."""
        with self._lock:
            return EngineStats(
                waiting=len(self._open) - self._running,
                running=self._running,
                steps=self._answered,
                generated_tokens=self._generated,
                prefilled_tokens=self._prefilled,
            )

    def healthy(self) -> bool:
        """True until it is closed: an outage of the server is the requests' matter."""
        return not self._closing.is_set()

    def close(self, *, timeout: float = 30.0) -> None:
        """Stop: unanswered requests end in `EngineStopped`, and their connections are closed within `timeout`."""
        with self._lock:
            self._closing.set()
            left = list(self._open.values())
        for handle in left:
            handle.fail(EngineStopped("the engine was closed"))
        self._pool.shutdown(wait=False, cancel_futures=True)
        deadline = time.monotonic() + timeout
        while self._running and time.monotonic() < deadline:
            time.sleep(0.01)
        self._client.close()

    def _first_model(self) -> str:
        try:
            response = self._client.get("/models", timeout=self._options.connect_seconds)
        except httpx2.TransportError as error:
            raise RemoteUnavailable("the remote engine does not answer") from error
        if response.status_code != 200:
            raise _error_of(response.status_code, response.headers, response.text)
        try:
            return str(response.json()["data"][0]["id"])
        except (ValueError, LookupError, TypeError) as error:
            raise RemoteUnavailable("the remote engine lists no models") from error

    # -- a worker thread --------------------------------------------------------------------------------------------

    def _work(
        self,
        number: int,
        request: EngineRequest,
        body: dict[str, Any],
        handle: PendingHandle,
        cancelled: threading.Event,
        submitted: float,
    ) -> None:
        with self._lock:
            self._running += 1
        started = time.monotonic()
        answer = None
        try:
            answer = self._answer(body, handle, cancelled, request.prefix.text if request.prefix else "")
            if answer is not None and answer.finish_reason is not None:
                handle.succeed(_completion(request, answer, answer.finish_reason, submitted=submitted, started=started))
        except EngineError as error:
            handle.fail(error)
        except Exception as error:  # noqa: BLE001 - a defect must not leave the caller waiting for ever
            failure = RemoteUnavailable("the remote engine could not be asked")
            failure.__cause__ = error
            handle.fail(failure)
        finally:
            with self._lock:
                self._open.pop(number, None)
                self._running -= 1
                self._answered += 1
                if answer is not None:
                    self._generated += answer.completion_tokens
                    self._prefilled += answer.prompt_tokens

    def _answer(
        self, body: dict[str, Any], handle: PendingHandle, cancelled: threading.Event, so_far: str
    ) -> Answer | None:
        """Return the answer; None where the request was cancelled. Tries again only while no text has arrived."""
        for attempt in itertools.count(1):
            self._wait_until(self._not_before, cancelled)
            if cancelled.is_set() or self._closing.is_set():
                return None
            answer = Answer(text=so_far)
            try:
                return self._ask(body, handle, answer)
            except RemoteUnavailable as error:
                wish = error.retry_after
                # Once text has arrived, a second try would repeat it.
                arrived = answer.first is not None
                if arrived or attempt >= self._options.attempts or (wish or 0.0) > self._options.longest_wait:
                    raise
                pause = 0.2 * 2**attempt if wish is None else wish
                if wish is not None:
                    # The wish is the whole server's: every thread keeps to it.
                    with self._lock:
                        self._not_before = max(self._not_before, time.monotonic() + wish)
                self._wait_until(time.monotonic() + pause, cancelled)
        return None

    def _ask(self, body: dict[str, Any], handle: PendingHandle, answer: Answer) -> Answer | None:
        try:
            with self._client.stream("POST", "/chat/completions", json=body) as response:
                if response.status_code != 200:
                    raise _error_of(response.status_code, response.headers, response.read().decode(errors="replace"))
                for piece in read_answer(response.iter_lines(), answer):
                    if handle.cancelled or self._closing.is_set():
                        return None
                    handle.emit(piece)
        except httpx2.TransportError as error:
            raise RemoteUnavailable("the remote engine broke off") from error
        if answer.finish_reason is None:
            raise RemoteUnavailable("the remote engine ended its answer early")
        return answer

    def _wait_until(self, when: float, cancelled: threading.Event) -> None:
        while (left := when - time.monotonic()) > 0 and not self._closing.is_set():
            if cancelled.wait(min(left, 0.1)):
                return


def _error_of(status: int, headers: Any, text: str) -> EngineError:
    if status in _TRANSIENT:
        return RemoteUnavailable(
            f"the remote engine answered {status}", retry_after=_seconds(headers.get("retry-after"))
        )
    failure = RemoteRefused(f"the remote engine refused the request ({status})")
    # What the server wrote may name its own files and addresses: it goes to the log with the cause, not to the client.
    failure.__cause__ = ValueError(text[:2000])
    return failure


def _seconds(header: str | None) -> float | None:
    """`Retry-After` is a number of seconds or a date (RFC 9110, section 10.2.3)."""
    if header is None:
        return None
    try:
        return max(float(header), 0.0)
    except ValueError:
        pass
    try:
        return max(parsedate_to_datetime(header).timestamp() - time.time(), 0.0)
    except ValueError:
        return None


def _completion(
    request: EngineRequest, answer: Answer, reason: FinishReason, *, submitted: float, started: float
) -> Completion:
    now = time.monotonic()
    return Completion(
        request_id=request.request_id,
        text=answer.text,
        finish_reason=reason,
        token_ids=(),
        prompt_tokens=answer.prompt_tokens,
        cached_tokens=answer.cached_tokens,
        completion_tokens=answer.completion_tokens,
        tiles=0,
        mean_logprob=None,
        media_hash=request.media_hash,
        queue_seconds=started - submitted,
        first_token_seconds=(answer.first or now) - submitted,
        total_seconds=now - submitted,
        device_seconds=now - started,
    )
