"""Group commit: many threads hand in one entry each, one thread writes them together.

A gpu worker claims and completes an item a thread; written singly that is one transaction an item. A `Batcher` collects
what arrives while the previous batch is being written (and no longer than `linger`), so a lone entry waits for nobody
and a crowd pays for one round trip.
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

    An exception of `write` reaches every waiter of that batch. `close` writes what has been handed in, then stops.
    """

    def __init__(
        self, write: Callable[[Sequence[E]], Sequence[R]], *, name: str, most: int = 64, linger: float = 0.002
    ) -> None:
        self._write = write
        self._most = most
        self._linger = linger
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
        while True:
            first = self._queue.get()
            if first is None:
                return
            batch, last = self._collect(first)
            self._flush(batch)
            if last:
                return

    def _collect(self, first: tuple[E, Future[R]]) -> tuple[list[tuple[E, Future[R]]], bool]:
        batch = [first]
        until = time.monotonic() + self._linger
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
