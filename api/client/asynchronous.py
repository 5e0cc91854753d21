"""The client for asyncio and trio; the same operations as `Client`, awaited."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from types import TracebackType
from typing import TypeVar

import anyio
import httpx2

from . import (
    estimating,
    exporting,
    file_operations,
    following,
    operations,
    saving,
    schedule_operations,
    webhook_operations,
)
from .binding import async_iterating, awaiting
from .calls import Answer, Call, Emit, Listing, More, Operation, Pause, Piece
from .retry import RetryPolicy
from .transport import Address, address, lost_of, reply_of, request_arguments

T = TypeVar("T")


class _Calls:
    """A group of calls that go through one client."""

    def __init__(self, client: AsyncClient) -> None:
        self.retry = client.retry
        self.drive = client.drive
        self.iterate = client.iterate


class AsyncFiles(_Calls):
    """`client.files`: uploads."""

    upload = awaiting(file_operations.upload)
    get = awaiting(file_operations.file)
    list = async_iterating(file_operations.files)
    delete = awaiting(file_operations.delete_file)
    content = awaiting(file_operations.file_content)
    download = awaiting(saving.download)


class AsyncExports(_Calls):
    """`client.exports`: results as objects."""

    create = awaiting(exporting.create)
    get = awaiting(exporting.export)
    list = async_iterating(exporting.exports)
    wait = awaiting(exporting.wait)
    cancel = awaiting(exporting.cancel)
    content = awaiting(exporting.content)


class AsyncSchedules(_Calls):
    """`client.schedules`: jobs that repeat."""

    create = awaiting(schedule_operations.create)
    get = awaiting(schedule_operations.get)
    list = async_iterating(schedule_operations.every)
    change = awaiting(schedule_operations.change)
    pause = awaiting(schedule_operations.pause)
    resume = awaiting(schedule_operations.resume)
    run = awaiting(schedule_operations.run)
    runs = async_iterating(schedule_operations.runs)
    delete = awaiting(schedule_operations.delete)
    preview = awaiting(schedule_operations.preview)


class AsyncWebhooks(_Calls):
    """`client.webhooks`: who is told when a job ends."""

    create = awaiting(webhook_operations.create)
    get = awaiting(webhook_operations.get)
    list = async_iterating(webhook_operations.listed)
    update = awaiting(webhook_operations.update)
    delete = awaiting(webhook_operations.delete)
    rotate = awaiting(webhook_operations.rotate)
    test = awaiting(webhook_operations.send_test)
    deliveries = async_iterating(webhook_operations.deliveries)
    replay = awaiting(webhook_operations.replay)
    replay_failed = awaiting(webhook_operations.replay_failed)


class AsyncClient:
    """Speaks to a Batchsight api from an event loop. Arguments as for `Client`."""

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = 60.0,
        retry: RetryPolicy | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        where = address(base_url, api_key, timeout)
        self.retry = retry or RetryPolicy()
        self._where = where
        self._http = httpx2.AsyncClient(
            base_url=where.base_url, headers=where.headers, transport=transport, follow_redirects=True
        )
        self.files = AsyncFiles(self)
        self.schedules = AsyncSchedules(self)
        self.exports = AsyncExports(self)
        self.webhooks = AsyncWebhooks(self)

    submit = awaiting(operations.submit)
    estimate = awaiting(estimating.estimate)
    job = awaiting(operations.job)
    jobs = async_iterating(operations.jobs)
    wait = awaiting(following.wait)
    events = async_iterating(following.events)
    items = async_iterating(operations.items)
    item = awaiting(operations.item)
    item_tiles = awaiting(operations.item_tiles)
    results = async_iterating(operations.results)
    markdown = awaiting(operations.markdown)
    text = awaiting(operations.text)
    save_results = awaiting(saving.save_results)
    cancel = awaiting(operations.cancel)
    redrive = awaiting(operations.redrive)
    kinds = awaiting(operations.kinds)
    usage = awaiting(operations.usage)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def drive(self, operation: Operation[T]) -> T:
        """Perform the steps of an operation; its value."""
        answer: Answer = None
        async with contextlib.aclosing(_Run(self._http, self._where)) as run:
            with contextlib.closing(operation):
                while True:
                    try:
                        step = operation.send(answer)
                    except StopIteration as stop:
                        value: T = stop.value
                        return value
                    answer = await run.perform(step)

    async def iterate(self, listing: Listing[T]) -> AsyncIterator[T]:
        """Perform the steps of a listing as it is iterated."""
        answer: Answer = None
        async with contextlib.aclosing(_Run(self._http, self._where)) as run:
            with contextlib.closing(listing):
                while True:
                    try:
                        step = listing.send(answer)
                    except StopIteration:
                        return
                    if isinstance(step, Emit):
                        yield step.value
                        answer = None
                    else:
                        answer = await run.perform(step)


class _Run:
    """One operation as it is performed. It holds the answer that is being streamed."""

    def __init__(self, http: httpx2.AsyncClient, where: Address) -> None:
        self._http = http
        self._where = where
        self._streamed: httpx2.Response | None = None
        self._pieces: AsyncIterator[bytes] | None = None

    async def perform(self, step: Call | More | Pause) -> Answer:
        """Do one step; what came of it."""
        if isinstance(step, Pause):
            await anyio.sleep(step.seconds)
            return None
        try:
            if isinstance(step, More):
                return await self._more()
            await self.aclose()
            with request_arguments(step, self._where.timeout) as arguments:
                if not step.stream:
                    return reply_of(await self._http.request(**arguments))
                return await self._open(self._http.build_request(**arguments))
        except httpx2.TransportError as error:
            return lost_of(error, self._where.base_url)

    async def aclose(self) -> None:
        """Let go of what is being streamed."""
        streamed, self._streamed, self._pieces = self._streamed, None, None
        if streamed is not None:
            await streamed.aclose()

    async def _open(self, request: httpx2.Request) -> Answer:
        response = await self._http.send(request, stream=True)
        self._streamed = response
        if response.is_error:
            await response.aread()
            return reply_of(response)
        self._pieces = response.aiter_bytes()
        return reply_of(response, body=b"")

    async def _more(self) -> Piece:
        if self._pieces is None:
            return Piece(data=b"")
        return Piece(data=await anext(self._pieces, b""))
