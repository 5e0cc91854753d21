"""The dispatcher's webhooks: its thread, its connections, its counters. See `pipelines.control.notify`."""

from __future__ import annotations

import threading
import time

from prometheus_client import Counter, Gauge

from pipelines.control.courier import Courier, address_policy
from pipelines.control.notify import Notifier, NotifyOptions
from pipelines.settings import Settings
from pipelines.store.leader import Epoch
from pipelines.store.session import Database

IDLE = 1.0
"""Seconds until the next look where nobody wakes it: retries become due."""
COUNT = 10.0
"""Between counts of the backlog."""

_sent = Counter("batchsight_webhook_attempts_total", "Webhooks sent, by what became of the delivery", ["state"])
_backlog = Gauge("batchsight_webhook_backlog", "Webhooks that are due and wait for a thread")


class Webhooks:
    """One thread calls `step`; any thread may `wake` it."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._database = Database(settings.database_url, pool_size=2, application_name=f"{name} webhooks")
        policy = address_policy(plain_http=settings.webhook_plain_http, networks=settings.webhook_networks)
        self._courier = Courier(policy)
        self._woken = threading.Event()
        self._notifier = Notifier(
            self._database,
            self._courier.send,
            options=NotifyOptions(concurrency=settings.webhook_concurrency),
            sent=self._noted,
        )
        self._next_count = time.monotonic()

    def wake(self) -> None:
        """There is something to send, or a thread is free again."""
        self._woken.set()

    def step(self, epoch: Epoch) -> None:
        """Send what is due, then wait for the next call or a moment. Raises `LeaderLost`, `StoreUnavailable`."""
        self._woken.clear()
        self._notifier.tick(epoch)
        if time.monotonic() >= self._next_count:
            self._next_count = time.monotonic() + COUNT
            _backlog.set(self._notifier.backlog())
        self._woken.wait(IDLE)

    def close(self) -> None:
        """Wait for what is being sent, then close everything."""
        self._notifier.close()
        self._courier.close()
        self._database.close()

    def _noted(self, state: str) -> None:
        _sent.labels(state).inc()
        self.wake()
