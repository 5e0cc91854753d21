"""The signal that a piece of work has become pointless, and why."""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable


class AbortReason(enum.StrEnum):
    """Why work stops before it is done."""

    CANCELLED = "cancelled"  # the job was cancelled
    LEASE_LOST = "lease_lost"  # the database gave the item to somebody else
    SHUTDOWN = "shutdown"  # this process stops
    TIMED_OUT = "timed_out"  # the item's own deadline passed


class Abort:
    """Fires once; the first reason stays. Callbacks run on the thread that fires, or at once if it has fired."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reason: AbortReason | None = None
        self._callbacks: list[Callable[[], None]] = []

    @property
    def reason(self) -> AbortReason | None:
        """Why, or None while the work still matters."""
        return self._reason

    def fire(self, reason: AbortReason) -> None:
        """Stop the work. Repeatable; later reasons are ignored."""
        with self._lock:
            if self._reason is not None:
                return
            self._reason = reason
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def on_fire(self, callback: Callable[[], None]) -> None:
        """Call `callback` when it fires (now, if it has)."""
        with self._lock:
            if self._reason is None:
                self._callbacks.append(callback)
                return
        callback()
