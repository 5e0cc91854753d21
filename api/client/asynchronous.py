"""The client for asyncio and trio; the same operations as `Client`, awaited."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import TracebackType
from typing import TypeVar

import anyio
import httpx2

from . import operations
from .binding import async_iterating, awaiting
from .calls import Answer, Call, Emit, Listing, Operation, Pause
from .retry import RetryPolicy
from .transport import address, lost_of, reply_of, request_arguments

T = TypeVar("T")


class AsyncFiles:
    """`client.files`: uploads."""

    def __init__(self, client: AsyncClient) -> None:
        self.retry = client.retry
        self.drive = client.drive
        self.iterate = client.iterate

    upload = awaiting(operations.upload)
    get = awaiting(operations.file)
    list = async_iterating(operations.files)
    delete = awaiting(operations.delete_file)
    content = awaiting(operations.file_content)


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

    submit = awaiting(operations.submit)
    job = awaiting(operations.job)
    jobs = async_iterating(operations.jobs)
    wait = awaiting(operations.wait)
    items = async_iterating(operations.items)
    item = awaiting(operations.item)
    results = async_iterating(operations.results)
    markdown = awaiting(operations.markdown)
    cancel = awaiting(operations.cancel)
    redrive = awaiting(operations.redrive)
    kinds = awaiting(operations.kinds)

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
        while True:
            try:
                step = operation.send(answer)
            except StopIteration as stop:
                value: T = stop.value
                return value
            answer = await self._perform(step)

    async def iterate(self, listing: Listing[T]) -> AsyncIterator[T]:
        """Perform the steps of a listing as it is iterated."""
        answer: Answer = None
        while True:
            try:
                step = listing.send(answer)
            except StopIteration:
                return
            if isinstance(step, Emit):
                yield step.value
                answer = None
            else:
                answer = await self._perform(step)

    async def _perform(self, step: Call | Pause) -> Answer:
        if isinstance(step, Pause):
            await anyio.sleep(step.seconds)
            return None
        try:
            with request_arguments(step, self._where.timeout) as arguments:
                return reply_of(await self._http.request(**arguments))
        except httpx2.TransportError as error:
            return lost_of(error, self._where.base_url)
