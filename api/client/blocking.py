"""The client for ordinary code."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import TracebackType
from typing import TypeVar

import httpx2

from . import operations
from .binding import blocking, iterating
from .calls import Answer, Call, Emit, Listing, Operation, Pause
from .retry import RetryPolicy
from .transport import address, lost_of, reply_of, request_arguments

T = TypeVar("T")


class Files:
    """`client.files`: uploads."""

    def __init__(self, client: Client) -> None:
        self.retry = client.retry
        self.drive = client.drive
        self.iterate = client.iterate

    upload = blocking(operations.upload)
    get = blocking(operations.file)
    list = iterating(operations.files)
    delete = blocking(operations.delete_file)
    content = blocking(operations.file_content)


class Client:
    """Speaks to a Batchsight api. Safe to share between threads; close it, or use it as a context manager.

    `base_url` and `api_key` default to `BATCHSIGHT_URL` and `BATCHSIGHT_API_KEY`; `timeout` in seconds.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = 60.0,
        retry: RetryPolicy | None = None,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        where = address(base_url, api_key, timeout)
        self.retry = retry or RetryPolicy()
        self._where = where
        self._http = httpx2.Client(
            base_url=where.base_url, headers=where.headers, transport=transport, follow_redirects=True
        )
        self.files = Files(self)

    submit = blocking(operations.submit)
    job = blocking(operations.job)
    jobs = iterating(operations.jobs)
    wait = blocking(operations.wait)
    items = iterating(operations.items)
    item = blocking(operations.item)
    results = iterating(operations.results)
    markdown = blocking(operations.markdown)
    cancel = blocking(operations.cancel)
    redrive = blocking(operations.redrive)
    kinds = blocking(operations.kinds)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def drive(self, operation: Operation[T]) -> T:
        """Perform the steps of an operation; its value."""
        answer: Answer = None
        while True:
            try:
                step = operation.send(answer)
            except StopIteration as stop:
                value: T = stop.value
                return value
            answer = self._perform(step)

    def iterate(self, listing: Listing[T]) -> Iterator[T]:
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
                answer = self._perform(step)

    def _perform(self, step: Call | Pause) -> Answer:
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return None
        try:
            with request_arguments(step, self._where.timeout) as arguments:
                return reply_of(self._http.request(**arguments))
        except httpx2.TransportError as error:
            return lost_of(error, self._where.base_url)
