"""Waiting for a job to change, for thousands of requests over one database connection.

One connection listens on the channel that the leader notifies. A notification reads the job once, however many wait for
it; between notifications nobody touches the database. While the listening connection is away, and for a notification
that was missed, waiting jobs are read again every few seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable

import psycopg
import structlog

from pipelines.control.query import JobView
from pipelines.jobs.errors import ServiceUnavailable

_log = structlog.get_logger(__name__)

CHANNEL = "batchsight_progress"
Load = Callable[[uuid.UUID, uuid.UUID], Awaitable[JobView | None]]


class _Topic:
    """One watched job: who waits for it, and whether it is being read."""

    def __init__(self, tenant_id: uuid.UUID) -> None:
        self.tenant_id = tenant_id
        self.watchers = 0
        self.changed = asyncio.Event()
        self.latest: JobView | None = None
        self.dirty = False
        self.reading = False

    def publish(self, view: JobView) -> None:
        self.latest = view
        self.changed.set()
        self.changed = asyncio.Event()


class JobWatch:
    """Tells waiting requests of new snapshots. Lives on one event loop.

    `changed` is called for each job that has changed, and with None where nobody knows which have.
    """

    def __init__(
        self,
        database_url: str,
        load: Load,
        *,
        changed: Callable[[uuid.UUID | None], None] = lambda _: None,
        recheck: float = 5.0,
    ) -> None:
        self._url = database_url
        self._load = load
        self._changed = changed
        self._recheck = recheck
        self._topics: dict[uuid.UUID, _Topic] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen while the context is open; waiting requests are let go at its end."""
        self._start(self._listen())
        self._start(self._recheck_forever())
        try:
            yield
        finally:
            self.release()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def closing(self) -> bool:
        """True once nobody should wait any more."""
        return self._closing

    def release(self) -> None:
        """Let all waiting requests go: the server stops."""
        self._closing = True
        for topic in self._topics.values():
            topic.changed.set()

    async def wait(self, tenant_id: uuid.UUID, job_id: uuid.UUID, *, seen: int, until: float) -> JobView | None:
        """The job once its version has passed `seen`, or None at the loop time `until`.

        The caller has found the job among the tenant's, at this version.
        """
        topic = self._topics.get(job_id)
        if topic is None:
            topic = self._topics[job_id] = _Topic(tenant_id)
        topic.watchers += 1
        try:
            # What changed between the caller's read and this moment would otherwise be missed.
            self._read_soon(job_id, topic)
            while not self._closing:
                changed = topic.changed
                latest = topic.latest
                if latest is not None and latest.job.version > seen:
                    return latest
                left = until - asyncio.get_running_loop().time()
                if left <= 0:
                    return None
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), left)
            return None
        finally:
            topic.watchers -= 1
            if not topic.watchers:
                self._topics.pop(job_id, None)

    async def _listen(self) -> None:
        while True:
            try:
                await self._listen_once()
            except (psycopg.Error, OSError) as error:
                _log.warning("progress_listener_lost", error=repr(error))
                await asyncio.sleep(1.0)

    async def _listen_once(self) -> None:
        async with await psycopg.AsyncConnection.connect(
            self._url, autocommit=True, application_name="batchsight-api-listen", connect_timeout=5
        ) as connection:
            await connection.execute(f"LISTEN {CHANNEL}")
            self._changed(None)
            self._read_all()  # whatever was notified while nobody listened
            async for notice in connection.notifies():
                with contextlib.suppress(ValueError):
                    job_id = uuid.UUID(notice.payload)
                    self._changed(job_id)
                    if (topic := self._topics.get(job_id)) is not None:
                        self._read_soon(job_id, topic)

    async def _recheck_forever(self) -> None:
        while True:
            await asyncio.sleep(self._recheck)
            self._read_all()

    def _read_all(self) -> None:
        for job_id, topic in list(self._topics.items()):
            self._read_soon(job_id, topic)

    def _read_soon(self, job_id: uuid.UUID, topic: _Topic) -> None:
        topic.dirty = True
        if not topic.reading:
            topic.reading = True
            self._start(self._read(job_id, topic))

    async def _read(self, job_id: uuid.UUID, topic: _Topic) -> None:
        try:
            while topic.dirty:
                topic.dirty = False
                view = await self._load(topic.tenant_id, job_id)
                if view is not None and (topic.latest is None or view.job.version != topic.latest.job.version):
                    topic.publish(view)
        except ServiceUnavailable as error:
            _log.warning("progress_read_failed", job_id=str(job_id), error=repr(error))
        finally:
            topic.reading = False

    def _start(self, work: Awaitable[None]) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
