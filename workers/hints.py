"""Hints over Redis pub/sub: things happen sooner than at the next heartbeat. Losing one costs time, nothing else."""

from __future__ import annotations

import threading
from collections.abc import Callable

import redis
import structlog

CANCEL_CHANNEL = "batchsight:cancel"

_log = structlog.get_logger(__name__)


class CancelHints:
    """Calls `on_hint` whenever a job was cancelled somewhere; reconnects for ever."""

    def __init__(self, redis_url: str, on_hint: Callable[[], None], *, pause: float = 5.0) -> None:
        self._client = redis.Redis.from_url(redis_url, socket_connect_timeout=5, health_check_interval=15)
        self._on_hint = on_hint
        self._pause = pause
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cancel-hints", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._stop.set()
        self._thread.join(5)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._listen()
            except redis.RedisError as error:
                _log.warning("cancel_hints_lost", error=repr(error))
                self._stop.wait(self._pause)
        self._client.close()

    def _listen(self) -> None:
        # redis ships types, but not for this method.
        with self._client.pubsub(ignore_subscribe_messages=True) as channel:  # type: ignore[no-untyped-call]
            channel.subscribe(CANCEL_CHANNEL)
            while not self._stop.is_set():
                if channel.get_message(timeout=1.0) is not None:
                    self._on_hint()
