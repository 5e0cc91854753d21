"""Back-pressure and shares: pure rules over the census.

PREPARE goes on only while what is prepared, being prepared or about to be is under a minute of engine work, a number of
items and a number of bytes, whichever is least; once stopped it resumes at half, so that a full shelf is not refilled
page by page. Interactive and other jobs are counted apart: a shelf full of bulk pages never holds up a chat.
"""

from __future__ import annotations

import threading
import uuid
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass

from pipelines.store.census import Busy


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """Bounds of what may wait for an engine: items, bytes of tile packs, and seconds of the engine's own pace."""

    items: int
    bytes: int
    seconds: float = 60.0
    least: int = 32
    """Never fewer items than this, however slow the engine: it must not run dry between two looks."""


class Throttle:
    """How many more items may be sent to PREPARE, with hysteresis. One for each lane."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self.closed = False

    def allowance(self, busy: Iterable[Busy], *, pace: float | None) -> int:
        """Items that may be sent now. `busy`: the lane's items; `pace`: items a second, None while unknown."""
        shelf = self._shelf
        items = bytes_ready = ready = 0
        for group in busy:
            on_the_way = group.state == "preparing" or (group.state == "pending" and group.enqueued)
            if group.cancelling or not (on_the_way or group.state == "ready"):
                continue
            items += group.entries
            if group.state == "ready":
                ready += group.entries
                bytes_ready += group.bytes
        each = bytes_ready / ready if ready else 0.0
        expected = bytes_ready + each * (items - ready)
        most = shelf.items if pace is None else max(min(shelf.items, round(pace * shelf.seconds)), shelf.least)
        most = min(most, shelf.items)
        if self.closed and (items > most / 2 or expected > shelf.bytes / 2):
            return 0
        room = most - items
        if each > 0:
            room = min(room, int((shelf.bytes - expected) / each))
        self.closed = room <= 0
        return max(0, room)


class Pace:
    """Items that ended, over the last minute. Thread-safe: one thread notes, another asks."""

    def __init__(self, *, window: float = 60.0) -> None:
        self._window = window
        self._lock = threading.Lock()
        self._noted: deque[tuple[float, int]] = deque()

    def note(self, ended: int, at: float) -> None:
        """`ended` more items at time `at` (seconds of a monotonic clock)."""
        with self._lock:
            if ended:
                self._noted.append((at, ended))
            while self._noted and self._noted[0][0] < at - self._window:
                self._noted.popleft()

    def rate(self, at: float) -> float | None:
        """Items a second; None where too little has been seen to tell."""
        with self._lock:
            if not self._noted or at - self._noted[0][0] < self._window / 6:
                return None
            return sum(ended for _, ended in self._noted) / (at - self._noted[0][0])


def loads(busy: Iterable[Busy], *, engine: bool) -> dict[uuid.UUID, int]:
    """What each tenant has in flight: on its way to an answer (`engine`), or anywhere past waiting."""
    found: Counter[uuid.UUID] = Counter()
    for group in busy:
        counts = (
            group.state == "inferring" or (group.state == "ready" and group.enqueued)
            if engine
            else group.enqueued or group.state != "pending"
        )
        if counts:
            found[group.tenant_id] += group.entries
    return dict(found)


@dataclass(frozen=True, kw_only=True)
class Suspects:
    """Of one stage: suspects that wait and that are under way, by losses (1; 2 and more)."""

    waiting_once: int
    waiting_twice: int
    running_once: int
    running_twice: int


def suspects(busy: Iterable[Busy], *, waiting: str, leased: str) -> Suspects:
    """Count them for the stage that goes from state `waiting` to state `leased`."""
    found: Counter[tuple[bool, int]] = Counter()
    for group in busy:
        if group.losses == 0 or group.cancelling or group.state not in (waiting, leased):
            continue
        found[group.state == leased or group.enqueued, group.losses] += group.entries
    return Suspects(
        waiting_once=found[False, 1],
        waiting_twice=found[False, 2],
        running_once=found[True, 1],
        running_twice=found[True, 2],
    )
