"""What the leader looks at for the alarms, every few seconds: jobs that do not move, and Redis' memory."""

from __future__ import annotations

import uuid
from typing import Protocol

import structlog
from prometheus_client import Gauge

from pipelines.jobs.errors import BrokerUnavailable
from pipelines.store import stuck
from pipelines.store.session import Database

_log = structlog.get_logger(__name__)
_STUCK = Gauge("batchsight_stuck_jobs", "Jobs with claimable work and no progress")
_MEMORY = Gauge("batchsight_redis_memory_bytes", "Memory of Redis; a limit of 0 is none", ["of"])


class Broker(Protocol):
    """The part of `workers.publish.Publisher` that is looked at."""

    def memory(self) -> tuple[int, int]:
        """Bytes used, and the most that may be."""


class Watch:
    """`stuck_after`: a job shows no progress for so many seconds before it is called stuck. One thread calls it."""

    def __init__(self, database: Database, broker: Broker, *, stuck_after: float) -> None:
        self._database = database
        self._broker = broker
        self._stuck_after = stuck_after
        self._told: set[uuid.UUID] = set()

    def look(self) -> int:
        """Set the gauges and name each stuck job once; how many there are. Raises `StoreUnavailable`."""
        try:
            used, limit = self._broker.memory()
            _MEMORY.labels("used").set(used)
            _MEMORY.labels("limit").set(limit)
        except BrokerUnavailable as error:
            _log.warning("redis_memory_unknown", error=error.message)
        with self._database.begin() as conn:
            found = stuck.stuck_jobs(conn, after=self._stuck_after)
        for job in found:
            if job.job_id not in self._told:
                _log.error(
                    "job_stuck",
                    job_id=str(job.job_id),
                    tenant_id=str(job.tenant_id),
                    stage=job.stage,
                    since=job.since.isoformat(),
                )
        self._told = {job.job_id for job in found}
        _STUCK.set(len(found))
        return len(found)

    def rest(self) -> None:
        """Another one leads: its gauge counts."""
        self._told = set()
        _STUCK.set(0)
