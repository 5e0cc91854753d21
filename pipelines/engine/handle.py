"""A submitted request, as its caller holds it: a future, a stream of text, and a way to cancel."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future

from pipelines.engine.types import Completion, OnText


class PendingHandle:
    """Meets `Handle`. The engine's side calls `emit`, `succeed` and `fail`; the first end wins."""

    def __init__(self, request_id: str, *, on_text: OnText | None, on_cancel: Callable[[], None]) -> None:
        self._request_id = request_id
        self._future: Future[Completion] = Future()
        # From here on `Future.cancel` is refused: a request is cancelled through the handle, and answers for it.
        self._future.set_running_or_notify_cancel()
        self._on_text = on_text
        self._on_cancel = on_cancel
        self._pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._ended = False
        self.cancelled = False
        self.streaming = on_text is not None

    @property
    def request_id(self) -> str:
        """The id that was submitted."""
        return self._request_id

    @property
    def future(self) -> Future[Completion]:
        """Ends in a `Completion`, or raises an `EngineError`."""
        return self._future

    def cancel(self) -> None:
        """Ask for an end at the next step."""
        if not self.cancelled and not self._future.done():
            self.cancelled = True
            self._on_cancel()

    def stream(self) -> Iterator[str]:
        """Pieces of text until the future ends; raises what the future raises."""
        self.streaming = True
        while (piece := self._pieces.get()) is not None:
            yield piece
        self._future.result()

    def emit(self, text: str) -> None:
        """Send a piece of text."""
        if text:
            self._pieces.put(text)
            if self._on_text is not None:
                self._on_text(text)

    def succeed(self, completion: Completion) -> None:
        """End with an answer."""
        if self._end():
            self._future.set_result(completion)
            self._pieces.put(None)

    def fail(self, error: BaseException) -> None:
        """End with an error."""
        if self._end():
            self._future.set_exception(error)
            self._pieces.put(None)

    def _end(self) -> bool:
        with self._lock:
            first, self._ended = not self._ended, True
        return first
