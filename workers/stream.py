"""Tokens on their way to a waiting client: Redis pub/sub, a hint like every message.

Each message carries the attempt that made it, so a client that saw a retry begin drops what the lost attempt had said.
The engine's thread only puts text into a queue; a thread of our own talks to Redis. A slow or dead Redis loses pieces,
never the answer: that is read from Postgres when the item has ended.
"""

from __future__ import annotations

import json
import queue
import threading
import uuid
from collections.abc import Callable

import redis
import structlog

_log = structlog.get_logger(__name__)
_MOST_WAITING = 10_000


def channel(job_id: uuid.UUID, seq: int) -> str:
    """Where the text of one item is published."""
    return f"batchsight:stream:{job_id}:{seq}"


class StreamPublisher:
    """Publishes pieces of text; bounded, never blocking the caller."""

    def __init__(self, redis_url: str) -> None:
        self._client = redis.Redis.from_url(redis_url, socket_timeout=5, socket_connect_timeout=5)
        self._queue: queue.Queue[tuple[str, str] | None] = queue.Queue(_MOST_WAITING)
        self._thread = threading.Thread(target=self._run, name="stream", daemon=True)
        self._thread.start()

    def writer(self, job_id: uuid.UUID, seq: int, attempt: int) -> Callable[[str], None]:
        """A callback for the engine: each piece of text of this attempt."""
        name = channel(job_id, seq)

        def write(text: str) -> None:
            self._put(name, {"attempt": attempt, "text": text})

        return write

    def finish(self, job_id: uuid.UUID, seq: int, attempt: int, *, ended: bool) -> None:
        """Say that this attempt is over; `ended`: the item is terminal and can be read from the database."""
        self._put(channel(job_id, seq), {"attempt": attempt, "done": True, "ended": ended})

    def close(self) -> None:
        """Publish what waits, then stop."""
        self._queue.put(None)
        self._thread.join(5)
        self._client.close()

    def _put(self, name: str, message: dict[str, object]) -> None:
        try:
            self._queue.put_nowait((name, json.dumps(message)))
        except queue.Full:
            _log.warning("stream_overflow", channel=name)

    def _run(self) -> None:
        while (entry := self._queue.get()) is not None:
            try:
                self._client.publish(*entry)
            except redis.RedisError as error:
                _log.warning("stream_publish_failed", error=repr(error))
