"""Group commit: many threads hand in one entry each, one thread writes them together.

A gpu worker claims and completes an item a thread; written singly that is one transaction an item. A `Batcher` begins
no more than one batch in `pace` seconds: a lone entry on an idle worker waits for nobody, and a crowd pays for one
round trip.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

import structlog

E = TypeVar("E")
R = TypeVar("R")

_log = structlog.get_logger(__name__)


class Batcher(Generic[E, R]):
    """Runs `write(entries) -> results` (one result an entry, in order) on its own thread.

    `pace`: seconds from the begin of one batch to the begin of the next. It bounds what an entry waits.
    An exception of `write` reaches every waiter of that batch. `close` writes what has been handed in, then stops.
    """

    def __init__(
        self, write: Callable[[Sequence[E]], Sequence[R]], *, name: str, most: int = 64, pace: float = 0.02
    ) -> None:
        self._write = write
        self._most = most
        self._pace = pace
        self._queue: queue.SimpleQueue[tuple[E, Future[R]] | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, entry: E) -> Future[R]:
        """Hand in an entry; the future ends with its result. Raises `RuntimeError` once closed."""
        if self._closed.is_set():
            raise RuntimeError("this batcher is closed")
        future: Future[R] = Future()
        self._queue.put((entry, future))
        return future

    def close(self, timeout: float = 30.0) -> None:
        """Write what is waiting, then stop. Repeatable."""
        if not self._closed.is_set():
            self._closed.set()
            self._queue.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        until = time.monotonic()
        while True:
            first = self._queue.get()
            if first is None:
                return
            batch, last = self._collect(first, until)
            until = time.monotonic() + self._pace
            self._flush(batch)
            if last:
                return

    def _collect(self, first: tuple[E, Future[R]], until: float) -> tuple[list[tuple[E, Future[R]]], bool]:
        """What is waiting, and what comes until `until`."""
        batch = [first]
        while len(batch) < self._most:
            try:
                entry = self._queue.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if entry is None:
                return batch, True
            batch.append(entry)
        return batch, False

    def _flush(self, batch: list[tuple[E, Future[R]]]) -> None:
        try:
            results = self._write([entry for entry, _ in batch])
            for (_, future), result in zip(batch, results, strict=True):
                future.set_result(result)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to the waiters; this thread must live on
            _log.warning("batch_write_failed", size=len(batch), error=repr(error))
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
