"""The gate of the suspect lane inside one process: an item that has cost two workers runs alone.

A reader-writer lock, with the writer (the solo item) first: once one waits, no other item starts, so it never starves.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class SoloGate:
    """`pass_through(solo=False)` is shared, `pass_through(solo=True)` excludes everything else in this process."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._inside = 0
        self._alone = False
        self._waiting_alone = 0

    @contextmanager
    def pass_through(self, *, solo: bool) -> Iterator[None]:
        """Wait for the gate, hold it for the block."""
        if solo:
            self._enter_alone()
        else:
            self._enter()
        try:
            yield
        finally:
            with self._condition:
                if solo:
                    self._alone = False
                else:
                    self._inside -= 1
                self._condition.notify_all()

    def _enter(self) -> None:
        with self._condition:
            self._condition.wait_for(lambda: not self._alone and not self._waiting_alone)
            self._inside += 1

    def _enter_alone(self) -> None:
        with self._condition:
            self._waiting_alone += 1
            self._condition.wait_for(lambda: not self._alone and not self._inside)
            self._waiting_alone -= 1
            self._alone = True
