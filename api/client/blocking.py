"""The client for ordinary code."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from types import TracebackType
from typing import TypeVar

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
from .binding import blocking, iterating
from .calls import Answer, Call, Emit, Listing, More, Operation, Pause, Piece
from .retry import RetryPolicy
from .transport import Address, address, lost_of, reply_of, request_arguments

T = TypeVar("T")


class _Calls:
    """A group of calls that go through one client."""

    def __init__(self, client: Client) -> None:
        self.retry = client.retry
        self.drive = client.drive
        self.iterate = client.iterate


class Files(_Calls):
    """`client.files`: uploads."""

    upload = blocking(file_operations.upload)
    get = blocking(file_operations.file)
    list = iterating(file_operations.files)
    delete = blocking(file_operations.delete_file)
    content = blocking(file_operations.file_content)
    download = blocking(saving.download)


class Exports(_Calls):
    """`client.exports`: results as objects."""

    create = blocking(exporting.create)
    get = blocking(exporting.export)
    list = iterating(exporting.exports)
    wait = blocking(exporting.wait)
    cancel = blocking(exporting.cancel)
    content = blocking(exporting.content)


class Schedules(_Calls):
    """`client.schedules`: jobs that repeat."""

    create = blocking(schedule_operations.create)
    get = blocking(schedule_operations.get)
    list = iterating(schedule_operations.every)
    change = blocking(schedule_operations.change)
    pause = blocking(schedule_operations.pause)
    resume = blocking(schedule_operations.resume)
    run = blocking(schedule_operations.run)
    runs = iterating(schedule_operations.runs)
    delete = blocking(schedule_operations.delete)
    preview = blocking(schedule_operations.preview)


class Webhooks(_Calls):
    """`client.webhooks`: who is told when a job ends."""

    create = blocking(webhook_operations.create)
    get = blocking(webhook_operations.get)
    list = iterating(webhook_operations.listed)
    update = blocking(webhook_operations.update)
    delete = blocking(webhook_operations.delete)
    rotate = blocking(webhook_operations.rotate)
    test = blocking(webhook_operations.send_test)
    deliveries = iterating(webhook_operations.deliveries)
    replay = blocking(webhook_operations.replay)
    replay_failed = blocking(webhook_operations.replay_failed)


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
        self.schedules = Schedules(self)
        self.exports = Exports(self)
        self.webhooks = Webhooks(self)

    submit = blocking(operations.submit)
    estimate = blocking(estimating.estimate)
    job = blocking(operations.job)
    jobs = iterating(operations.jobs)
    wait = blocking(following.wait)
    events = iterating(following.events)
    items = iterating(operations.items)
    item = blocking(operations.item)
    item_tiles = blocking(operations.item_tiles)
    results = iterating(operations.results)
    markdown = blocking(operations.markdown)
    text = blocking(operations.text)
    save_results = blocking(saving.save_results)
    cancel = blocking(operations.cancel)
    redrive = blocking(operations.redrive)
    kinds = blocking(operations.kinds)
    usage = blocking(operations.usage)

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
        with contextlib.closing(_Run(self._http, self._where)) as run, contextlib.closing(operation):
            while True:
                try:
                    step = operation.send(answer)
                except StopIteration as stop:
                    value: T = stop.value
                    return value
                answer = run.perform(step)

    def iterate(self, listing: Listing[T]) -> Iterator[T]:
        """Perform the steps of a listing as it is iterated."""
        answer: Answer = None
        with contextlib.closing(_Run(self._http, self._where)) as run, contextlib.closing(listing):
            while True:
                try:
                    step = listing.send(answer)
                except StopIteration:
                    return
                if isinstance(step, Emit):
                    yield step.value
                    answer = None
                else:
                    answer = run.perform(step)


class _Run:
    """One operation as it is performed. It holds the answer that is being streamed."""

    def __init__(self, http: httpx2.Client, where: Address) -> None:
        self._http = http
        self._where = where
        self._streamed: httpx2.Response | None = None
        self._pieces: Iterator[bytes] | None = None

    def perform(self, step: Call | More | Pause) -> Answer:
        """Do one step; what came of it."""
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return None
        try:
            if isinstance(step, More):
                return self._more()
            self.close()
            with request_arguments(step, self._where.timeout) as arguments:
                if not step.stream:
                    return reply_of(self._http.request(**arguments))
                return self._open(self._http.build_request(**arguments))
        except httpx2.TransportError as error:
            return lost_of(error, self._where.base_url)

    def close(self) -> None:
        """Let go of what is being streamed."""
        streamed, self._streamed, self._pieces = self._streamed, None, None
        if streamed is not None:
            streamed.close()

    def _open(self, request: httpx2.Request) -> Answer:
        response = self._http.send(request, stream=True)
        self._streamed = response
        if response.is_error:
            response.read()
            return reply_of(response)
        self._pieces = response.iter_bytes()
        return reply_of(response, body=b"")

    def _more(self) -> Piece:
        if self._pieces is None:
            return Piece(data=b"")
        return Piece(data=next(self._pieces, b""))
