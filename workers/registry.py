"""A worker's own line in the registry, written every few seconds while it lives."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable

import structlog
from prometheus_client import Gauge

from pipelines.engine.types import Engine
from pipelines.jobs.errors import ServiceUnavailable
from pipelines.store import workers
from pipelines.store.session import Database

ANNOUNCE_SECONDS = 5.0
ALIVE_WITHIN_SECONDS = 3 * ANNOUNCE_SECONDS
"""A worker that was silent for so long does not count as alive."""

_log = structlog.get_logger(__name__)
_STATS = Gauge("batchsight_engine", "What the engine says of itself", ["figure"])


class Registration:
    """Announces one worker on a thread of its own; `start` after any fork. `measure` sets gauges at the same pace."""

    def __init__(
        self,
        database_url: str,
        *,
        worker: str,
        role: str,
        slots: int,
        engine: Engine | None = None,
        measure: Callable[[], None] = lambda: None,
    ) -> None:
        self._database = Database(database_url, pool_size=1, application_name=f"{worker} registry")
        self._worker = workers.Worker(
            worker_id=worker,
            role=role,
            slots=slots,
            engine=dataclasses.asdict(engine.info) if engine else {},
        )
        self._engine = engine
        self._measure = measure
        self._draining = False
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="registry", daemon=True)

    def start(self) -> None:
        """Begin to announce."""
        self._thread.start()

    def drain(self) -> None:
        """Say at once that nothing more is taken."""
        self._draining = True
        self._wake.set()

    def close(self) -> None:
        """Leave the registry. Repeatable."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(10)
        try:
            with self._database.begin() as conn:
                workers.forget(conn, self._worker.worker_id)
        except ServiceUnavailable as error:
            _log.warning("registry_not_left", error=error.message)
        self._database.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._measure()
            stats = dataclasses.asdict(self._engine.stats()) if self._engine else {}
            for figure, value in stats.items():
                _STATS.labels(figure).set(value)
            try:
                with self._database.begin() as conn:
                    workers.announce(conn, dataclasses.replace(self._worker, stats=stats, draining=self._draining))
            except ServiceUnavailable as error:
                _log.warning("registry_write_failed", error=error.message)
            self._wake.wait(ANNOUNCE_SECONDS)
            self._wake.clear()
