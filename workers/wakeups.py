"""What the dispatcher's loops wait for: reasons to look, collected from the thread that listens."""

from __future__ import annotations

import threading

from pipelines.store.values import Wake


class WakeUps:
    """What there is to do, collected from any thread, taken by one."""

    def __init__(self) -> None:
        self._ready = threading.Condition()
        self._reasons: set[Wake] = set()
        self._closed = False

    def add(self, *reasons: Wake) -> None:
        """There is this to do."""
        with self._ready:
            self._reasons.update(reasons)
            self._ready.notify_all()

    def take(self, timeout: float) -> frozenset[Wake]:
        """Wait up to `timeout` seconds for something; everything that has come, and forget it."""
        with self._ready:
            self._ready.wait_for(lambda: bool(self._reasons) or self._closed, timeout)
            reasons, self._reasons = frozenset(self._reasons), set()
            return reasons

    def close(self) -> None:
        """Wait no more."""
        with self._ready:
            self._closed = True
            self._ready.notify_all()
