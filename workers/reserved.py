"""Engine slots of their own for interactive items: a few threads that take from the interactive queue alone.

The engine's other slots take interactive messages first, but only when one comes free; behind a bulk job of long
answers that is a long wait. Celery cannot keep some threads of a pool for one queue, so these stand beside its pool and
read the queue themselves. A message is a hint, so it is acknowledged as soon as it is here: one that is lost with the
process is sent again by the dispatcher.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty
from typing import Any

import redis
import structlog
from kombu import Connection, Exchange, Queue
from kombu.exceptions import KombuError

from workers.app import GPU_INTERACTIVE

_log = structlog.get_logger(__name__)

_PAUSE = 1.0  # seconds, after an error
_POLL = 1.0  # seconds that one look at the queue waits
_TRANSPORT = {"socket_timeout": 15, "socket_connect_timeout": 5, "socket_keepalive": True, "health_check_interval": 15}

Answer = Callable[[list[Any]], None]
"""Works on one message, given its arguments; never raises."""


class ReservedSlots:
    """So many threads on the interactive queue, from the start of the object to `stop`."""

    def __init__(self, redis_url: str, answer: Answer, *, slots: int) -> None:
        self._url = redis_url
        self._answer = answer
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, name=f"interactive-{number}", daemon=True) for number in range(slots)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Take nothing more. Returns at once."""
        self._stop.set()

    def close(self, timeout: float) -> None:
        """Wait until what was taken has been answered, at most so many seconds."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._take()
            except (redis.RedisError, KombuError, OSError) as error:
                _log.warning("interactive_queue_lost", error=repr(error))
                self._stop.wait(_PAUSE)

    def _take(self) -> None:
        with Connection(self._url, transport_options=_TRANSPORT) as connection:
            named = Queue(GPU_INTERACTIVE, Exchange("batchsight", type="direct"), routing_key=GPU_INTERACTIVE)
            with connection.SimpleQueue(named) as waiting:  # type: ignore[arg-type]  # its stubs know names alone
                while not self._stop.is_set():
                    try:
                        message = waiting.get(timeout=_POLL)
                    except Empty:
                        continue
                    message.ack()
                    self._answer(message.payload[0])
