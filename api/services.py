"""What a running api holds; made once in `api.lifespan`, handed to routes by `api.dependencies`."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import structlog
from redis.asyncio import Redis
from sqlalchemy import Connection

from api.auth import Authenticator
from api.metrics import Metrics
from api.ratelimit import RateLimiter
from api.snapshots import Snapshots
from api.watch import JobWatch
from pipelines.blobs.base import BlobStore, ObjectReader
from pipelines.control.courier import address_policy
from pipelines.control.exports.target import ExportRules
from pipelines.control.messages import PlanMessage
from pipelines.jobs.errors import BrokerUnavailable
from pipelines.media.ssrf import AddressPolicy
from pipelines.settings import Settings
from pipelines.steps.submit import SubmitRules, submit_rules
from pipelines.store.session import Database
from workers.publish import Publisher

T = TypeVar("T")

_log = structlog.get_logger(__name__)
_PATIENCE = 1.0  # seconds for a hint


@dataclass(frozen=True, kw_only=True)
class Services:
    """The parts of one api process. `threads` bounds how many store calls run at once: the pool's size."""

    settings: Settings
    database: Database
    blobs: BlobStore
    objects: ObjectReader
    publisher: Publisher
    redis: Redis
    auth: Authenticator
    limiter: RateLimiter
    watch: JobWatch
    snapshots: Snapshots
    loop: asyncio.AbstractEventLoop
    metrics: Metrics
    threads: anyio.CapacityLimiter
    hint_threads: anyio.CapacityLimiter
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def submit_rules(self) -> SubmitRules:
        """What submissions are held to."""
        return submit_rules(self.settings)

    @property
    def export_rules(self) -> ExportRules:
        """Where results may be exported to."""
        return self.submit_rules.exports

    @property
    def webhook_policy(self) -> AddressPolicy:
        """What webhooks may reach."""
        settings = self.settings
        return address_policy(plain_http=settings.webhook_plain_http, networks=settings.webhook_networks)

    async def transact(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in one transaction, on a thread. Raises `StoreUnavailable` and whatever `work` raises."""
        return await transact(self.database, self.threads, work)

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run blocking work that is not a transaction (the blob store) on a thread."""
        return await anyio.to_thread.run_sync(work)

    def release(self) -> None:
        """Let waiting requests go, from a signal handler or another thread."""
        self.loop.call_soon_threadsafe(self.watch.release)

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        """Do work beside the requests that ends soon after `stopping` is set; what is undone must be found again.

        It is not cancelled: asyncio would leave its threads behind, at work on connections that are being closed.
        """
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def hint_plan(self, job_id: uuid.UUID, *, interactive: bool) -> None:
        """Tell a worker of a committed job. Redis may be away: the dispatcher finds the job in any case."""
        if interactive:
            message = PlanMessage(job_id=job_id, interactive=True)
            await self._hint("plan", job_id, lambda: self.publisher.publish([message]))
        else:
            await self._hint("plan", job_id, lambda: self.publisher.plan(job_id))

    async def hint_cancel(self, job_id: uuid.UUID) -> None:
        """Tell the workers of a cancelled job. Without Redis they hear of it at their next heartbeat."""
        await self._hint("cancel", job_id, lambda: self.publisher.cancel(job_id))

    async def _hint(self, name: str, job_id: uuid.UUID, send: Callable[[], None]) -> None:
        """No answer waits longer than a moment for a Redis that hangs; the thread is left to its own time-out."""
        try:
            with anyio.fail_after(_PATIENCE):
                await anyio.to_thread.run_sync(send, limiter=self.hint_threads, abandon_on_cancel=True)
        except (BrokerUnavailable, TimeoutError) as error:
            self.metrics.hints_lost.inc()
            _log.warning("hint_lost", hint=name, job_id=str(job_id), error=repr(error.__cause__ or error))


async def transact(database: Database, threads: anyio.CapacityLimiter, work: Callable[[Connection], T]) -> T:
    """One transaction on a thread."""

    def run() -> T:
        with database.begin() as conn:
            return work(conn)

    return await anyio.to_thread.run_sync(run, limiter=threads)
