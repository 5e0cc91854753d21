"""Celery's request, with an acknowledgement that is not lost in silence, and that is heard at once.

Celery logs an acknowledgement that Redis did not take and goes on; the message then counts against the worker's
prefetch for ever. A worker whose slots were all busy when Redis restarted has no read under way that could fail, so it
would never ask for a message again, and its health would look good. Here the loss ends the broken connection, as a
failed read does: the consumer opens a new one and begins to count anew.

An acknowledgement makes room for the next message; but one from a thread of the pool reaches no event loop, and a loop
that has stopped reading because every slot was taken sleeps for up to a second before it looks again. So it is woken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import structlog
from celery.bootsteps import StartStopStep
from celery.worker.request import Request

_log = structlog.get_logger(__name__)


class AcknowledgedRequest(Request):
    """Named by `workers.app`."""

    loop: ClassVar[Any] = None
    """The consumer's event loop. Not kombu's global one: that is forgotten at the first reconnection."""

    def acknowledge(self) -> None:
        """Tell Redis that the message is done with. Called in the consumer's loop, or in a thread of the pool."""
        if self.acknowledged:
            return
        errors: tuple[type[Exception], ...] = tuple(self.connection_errors)
        try:
            self.message.ack()
        except errors as error:
            _log.warning("acknowledgement_lost", error=repr(error))
            self._tell(_raise, error)
        else:
            self._tell(_look_again)
        self.acknowledged = True

    def _tell(self, callback: Callable[..., None], *arguments: object) -> None:
        """Call back in the loop, which wakes up for it."""
        if self.loop is not None:
            self.loop.call_soon(callback, *arguments)


class KnowsLoop(StartStopStep):
    """A step of the consumer: tells requests its loop, at the start and at each reconnection."""

    def start(self, parent: Any) -> None:
        """The consumer has connected."""
        AcknowledgedRequest.loop = parent.hub


def _look_again() -> None:
    """Nothing: before the loop sleeps again it asks Redis for what it has room for."""


def _raise(error: Exception) -> None:
    raise error
