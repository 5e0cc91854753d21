"""A cpu worker claims nothing while its scratch disk is full: its items would only use up their retries.

The messages that it takes meanwhile are held for a while and then forgotten: other workers get the items. Nothing here
makes a worker unhealthy, for a restart frees no disk; the gauge is what to raise an alarm on.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import structlog
from prometheus_client import Gauge

_log = structlog.get_logger(__name__)
_BYTES = Gauge("batchsight_scratch_bytes", "Of the disk under the scratch folder", ["of"])


class ScratchGate:
    """`has_room` is asked before each claim. Times in seconds; `patience` is how long one message is held."""

    def __init__(
        self,
        has_room: Callable[[], bool],
        *,
        patience: float = 10.0,
        interval: float = 0.5,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._has_room = has_room
        self._tries = max(1, round(patience / interval))
        self._interval = interval
        self._sleep = sleep

    def passes(self) -> bool:
        """True once there is room; False where there was none for as long as a message may be held."""
        if self._has_room():
            return True
        _log.warning("scratch_is_full")
        for _ in range(self._tries):
            self._sleep(self._interval)
            if self._has_room():
                return True
        return False


def measure(folder: Path) -> None:
    """Show the disk's size and what is free; called every few seconds by a worker's main process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        usage = shutil.disk_usage(folder)
    except OSError as error:
        _log.warning("scratch_unreadable", error=str(error))
        return
    _BYTES.labels("total").set(usage.total)
    _BYTES.labels("free").set(usage.free)
