"""What this process holds, and the heartbeat that keeps it: one statement for everything, every few seconds.

A lease that the database no longer knows is aborted at once: its work would be refused anyway. An outage of the
database aborts nothing: the sweeper waits one whole lease after a gap before it counts a loss.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import structlog

from pipelines.jobs.errors import ServiceUnavailable
from pipelines.steps.abort import Abort, AbortReason

Key = tuple[uuid.UUID, int, int]
"""A leased row: job, seq (or doc), attempt."""

_log = structlog.get_logger(__name__)


class Beat(Protocol):
    """The database's answer to a heartbeat."""

    @property
    def kept(self) -> frozenset[Key]:
        """Leases that were extended."""

    @property
    def cancelled(self) -> frozenset[Key]:
        """Extended too, but their job was cancelled: stop."""


class LeaseKeeper:
    """Holds leases and extends them on a thread of its own, started at the first lease (so: after a fork)."""

    def __init__(self, beat: Callable[[Sequence[Key]], Beat], *, interval: float) -> None:
        self._beat = beat
        self._interval = interval
        self._lock = threading.Lock()
        self._held: dict[Key, Abort] = {}
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @contextmanager
    def hold(self, key: Key) -> Iterator[Abort]:
        """Keep this lease until the block ends; the `Abort` fires when the work has become pointless."""
        abort = Abort()
        with self._lock:
            self._held[key] = abort
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._run, name="leases", daemon=True)
                self._thread.start()
        try:
            yield abort
        finally:
            with self._lock:
                self._held.pop(key, None)

    def held(self) -> int:
        """How many leases this process holds."""
        with self._lock:
            return len(self._held)

    def check_now(self) -> None:
        """Beat at once: a hint says that a job was cancelled."""
        self._wake.set()

    def abort_all(self, reason: AbortReason) -> None:
        """Fire every abort (shutdown, a dead engine)."""
        with self._lock:
            aborts = list(self._held.values())
        for abort in aborts:
            abort.fire(reason)

    def close(self) -> None:
        """Stop beating. Repeatable."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(5)

    def beat_once(self) -> None:
        """One heartbeat for everything held."""
        with self._lock:
            held = dict(self._held)
        if not held:
            return
        try:
            beat = self._beat(tuple(held))
        except ServiceUnavailable as error:
            _log.warning("heartbeat_failed", held=len(held), error=error.message)
            return
        for key, abort in held.items():
            if key in beat.cancelled:
                abort.fire(AbortReason.CANCELLED)
            elif key not in beat.kept:
                abort.fire(AbortReason.LEASE_LOST)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(self._interval)
            self._wake.clear()
            if self._stop.is_set():
                return
            try:
                self.beat_once()
            except Exception:  # noqa: BLE001 - a beat that fails must not end the beating
                _log.exception("heartbeat_raised")
