"""The local engine: many threads submit, one thread owns the device.

The thread's loop is short: take new requests and cancellations, step, hand tokens to their requests, publish
counters. A request that fails ends alone. An error of the device, or a stop, ends every unanswered request in
`EngineStopped`, which is transient: somebody else answers it.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from pipelines.engine.config import ModelConfig
from pipelines.engine.core import EngineCore, Failed
from pipelines.engine.errors import EngineStopped, RequestCancelled
from pipelines.engine.handle import PendingHandle
from pipelines.engine.request import ActiveRequest, Bounds, prepare
from pipelines.engine.runner import DeviceLost
from pipelines.engine.sequence import Sequence
from pipelines.engine.tokenizer import Tokenizer
from pipelines.engine.types import EngineInfo, EngineRequest, EngineStats, FinishReason, Handle, OnText
from pipelines.jobs.errors import EngineError

_log = logging.getLogger(__name__)


class LocalEngine:
    """Meets `Engine` on this machine's devices. Made by `load_engine`."""

    def __init__(
        self,
        core: EngineCore,
        *,
        info: EngineInfo,
        config: ModelConfig,
        tokenizer: Tokenizer,
        stall_seconds: float = 120.0,
        guard: bool = True,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self._core = core
        self._info = info
        self._config = config
        self.tokenizer = tokenizer
        self._stall_seconds = stall_seconds
        self._guard = guard
        self._on_close = on_close
        limits = core.scheduler.limits
        self._bounds = Bounds(context=limits.context, cache=limits.pages * limits.page_size)
        self._numbers = itertools.count(1)
        self._wake = threading.Condition()
        self._inbox: deque[ActiveRequest] = deque()
        self._cancels: deque[ActiveRequest] = deque()
        self._active: dict[Sequence, ActiveRequest] = {}
        self._closing = False
        self._dead: str | None = None
        self._progress = time.monotonic()
        self._stats = EngineStats(kv_pages_total=limits.pages)
        self._cached = self._cached_tiles = self._degenerate = self._saved = 0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def info(self) -> EngineInfo:
        """What runs here."""
        return self._info

    def submit(self, request: EngineRequest, *, on_text: OnText | None = None) -> Handle:
        """Queue a request; see `Engine.submit`."""
        self._refuse_if_stopped()
        sequence = prepare(
            request, number=next(self._numbers), tokenizer=self.tokenizer, config=self._config, bounds=self._bounds
        )
        handle = PendingHandle(request.request_id, on_text=on_text, on_cancel=lambda: self._cancel(active))
        active = ActiveRequest(request, handle, sequence, self.tokenizer)
        with self._wake:
            self._refuse_if_stopped()
            if not self._inbox and not self._active:
                self._progress = time.monotonic()
            self._inbox.append(active)
            self._wake.notify()
        return handle

    def stats(self) -> EngineStats:
        """A consistent snapshot, as of the last step."""
        return self._stats

    def healthy(self) -> bool:
        """False where closed, where the device is lost, or without a step for `stall_seconds` while work waits."""
        if self._closing or self._dead is not None:
            return False
        working = bool(self._active or self._inbox)
        return not working or time.monotonic() - self._progress < self._stall_seconds

    def close(self, *, timeout: float = 30.0) -> None:
        """Stop. Where the device does not return in time, the requests are answered without it."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(timeout)
        self._stop_all("the engine was closed")
        if self._on_close is not None:
            on_close, self._on_close = self._on_close, None
            on_close()

    @property
    def alive(self) -> bool:
        """Whether nothing of the engine was lost, closed or not."""
        return self._dead is None

    def lose(self, why: str) -> None:
        """Give everything back because a part of the engine is gone; the engine's thread may be stuck in a step."""
        if not self._closing:
            _log.error("engine.lost", extra={"why": why})
            self._dead = why
            self._stop_all("a part of the engine died")

    # -- the engine's thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._collect():
                self._step()
                self._publish()
            self._stop_all("the engine was closed")
        except DeviceLost as error:
            _log.exception("engine.device_lost")
            self._dead = str(error)
            self._stop_all("the device failed")
        except BaseException as error:  # noqa: BLE001 - a defect of ours must not leave callers waiting for ever
            _log.exception("engine.died")
            self._dead = repr(error)
            self._stop_all("the engine died")

    def _collect(self) -> bool:
        """Take what has arrived; wait where there is nothing to do. False once the engine is to stop."""
        with self._wake:
            while not (self._closing or self._inbox or self._cancels or self._core.busy):
                self._wake.wait()
            if self._closing:
                return False
            arrived = list(self._inbox)
            cancelled = list(self._cancels)
            self._cancels.clear()
            # A request is in `_inbox` or in `_active`, never between: `healthy` looks at both.
            for active in arrived:
                self._active[active.sequence] = active
            self._inbox.clear()
        for active in arrived:
            self._core.add(active.sequence)
        for active in cancelled:
            if self._active.get(active.sequence) is active:
                self._fail(active, RequestCancelled("the request was cancelled"))
        return True

    def _step(self) -> None:
        started = time.monotonic()
        events = self._core.step()
        self._progress = time.monotonic()
        # Before the answers: who has one finds its tokens counted.
        self._publish()
        self._charge(started, self._progress)
        for event in events:
            active = self._active[event.sequence]
            if isinstance(event, Failed):
                self._drop(active)
                active.handle.fail(event.error)
                continue
            try:
                reason = active.token(event.token, event.logprob, guard=self._guard)
                if reason is not None:
                    self._finish(active, reason)
            except Exception as error:  # noqa: BLE001 - see below
                # The only foreign code here is the caller's callback: its defect is its own request's.
                _log.exception("engine.callback_failed")
                failure = EngineError("the callback of the request failed")
                failure.__cause__ = error
                self._fail(active, failure)

    def _charge(self, started: float, ended: float) -> None:
        """Divide a step's time among its requests by their rows; a tile counts as its visual tokens."""
        step = self._core.last
        if step is None:
            return
        shares: list[tuple[Sequence, int]] = [(each, 1) for each in step.decoding]
        for sequence, size in step.prefilling:
            shares.append((sequence, size))
        shares += [(each, tiles * self._config.tokens_per_tile) for each, _, tiles in step.encoding]
        unit = (ended - started) / max(sum(share for _, share in shares), 1)
        for sequence, share in shares:
            if active := self._active.get(sequence):
                active.admitted(started)
                active.device_seconds += unit * share

    def _finish(self, active: ActiveRequest, reason: FinishReason) -> None:
        self._drop(active)
        if reason is FinishReason.DEGENERATE:
            again = active.retry(next(self._numbers))
            if again is not None:
                self._active[again] = active
                self._core.add(again)
                return
        completion = active.completion(reason)
        self._cached += completion.cached_tokens
        self._degenerate += completion.degenerate
        self._saved += completion.tokens_saved
        active.handle.succeed(completion)

    def _drop(self, active: ActiveRequest) -> None:
        self._active.pop(active.sequence, None)
        self._core.remove(active.sequence)

    def _fail(self, active: ActiveRequest, error: Exception) -> None:
        self._drop(active)
        active.handle.fail(error)

    def _publish(self) -> None:
        core, scheduler = self._core, self._core.scheduler
        self._stats = EngineStats(
            waiting=len(scheduler.waiting),
            running=len(scheduler.running),
            steps=core.steps,
            generated_tokens=core.generated,
            prefilled_tokens=core.prefilled,
            cached_tokens=self._cached,
            tiles=core.tiles,
            cached_tiles=scheduler.ledger.hits,
            preemptions=scheduler.preemptions,
            kv_pages_used=scheduler.pool.used,
            kv_pages_total=scheduler.pool.total,
            degenerate=self._degenerate,
            tokens_saved=self._saved,
        )

    # -- both sides -------------------------------------------------------------------------------------------------

    def _cancel(self, active: ActiveRequest) -> None:
        with self._wake:
            self._cancels.append(active)
            self._wake.notify()

    def _refuse_if_stopped(self) -> None:
        if self._closing or self._dead is not None:
            raise EngineStopped("the engine has stopped")

    def _stop_all(self, why: str) -> None:
        with self._wake:
            self._closing = True
            left = [*self._inbox, *self._active.values()]
        for active in left:
            active.handle.fail(EngineStopped(why))
