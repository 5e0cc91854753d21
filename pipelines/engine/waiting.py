"""The waiting room: priorities first, then the group that was served least, then order of arrival."""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Iterator

from pipelines.engine.sequence import Sequence


class WaitingRoom:
    """Sequences that hold nothing. Fairness is counted in tokens that a group was given."""

    def __init__(self) -> None:
        self._groups: dict[str, list[Sequence]] = {}
        self._served: dict[str, float] = {}
        self._active: dict[str, int] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Sequence]:
        for queue in self._groups.values():
            yield from queue

    def enter(self, group: str) -> None:
        """Count a request of this group in; a group that comes (back) starts level with the least served one."""
        if group not in self._active:
            self._served[group] = min((self._served[other] for other in self._active), default=0.0)
            self._active[group] = 0
        self._active[group] += 1

    def leave(self, group: str) -> None:
        """Count a finished request out; a group without requests is forgotten."""
        self._active[group] -= 1
        if not self._active[group]:
            del self._active[group], self._served[group]

    def charge(self, group: str, tokens: int) -> None:
        """Note that so many tokens were computed for a group."""
        self._served[group] += tokens

    def add(self, sequence: Sequence) -> None:
        """Put a sequence in its group's queue, by priority and arrival."""
        bisect.insort(self._groups.setdefault(sequence.group, []), sequence, key=lambda each: each.rank)
        self._count += 1

    def remove(self, sequence: Sequence) -> bool:
        """Take a sequence out; False where it does not wait here."""
        queue = self._groups.get(sequence.group, [])
        if sequence not in queue:
            return False
        queue.remove(sequence)
        if not queue:
            del self._groups[sequence.group]
        self._count -= 1
        return True

    def in_order(self) -> Iterator[Sequence]:
        """Yield candidates, best first, as if each was admitted: its prompt then counts for its group.

        Sequences may be taken out while this runs.
        """
        served = dict(self._served)
        queues = {group: list(queue) for group, queue in self._groups.items()}
        heap = [(queue[0].priority, served[group], queue[0].number, group, 0) for group, queue in queues.items()]
        heapq.heapify(heap)
        while heap:
            _, _, _, group, place = heapq.heappop(heap)
            sequence = queues[group][place]
            served[group] += len(sequence.tokens)
            if place + 1 < len(queues[group]):
                following = queues[group][place + 1]
                heapq.heappush(heap, (following.priority, served[group], following.number, group, place + 1))
            yield sequence
