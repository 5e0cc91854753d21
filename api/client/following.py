"""Following a job: waiting for its end, and its versions as they come. Both go on after a broken connection."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from .calls import Call, Emit, Listing, Lost, More, Operation, Pause, Piece
from .errors import BatchsightError, ConnectionFailed, RateLimited, ServerError, WaitTimeout
from .models import Job
from .reading import Core, id_of, json_of
from .retry import RetryPolicy, exchange
from .server_events import EventReader

_LONGEST_POLL = 30
_SILENCE = 60.0  # the server sends a comment every quarter of a minute
_ONCE = RetryPolicy(retries=0)

Update = Callable[[Job], None]


def wait(core: Core, job_id: str, *, timeout: float | None = None, on_update: Update | None = None) -> Operation[Job]:
    """Wait until the job has ended. `timeout` in seconds (None: for ever); raises `WaitTimeout`.

    The server answers as soon as something changes (a long poll); a server that is away, or asks for patience, is
    asked again until the time is up. `on_update` is called with every new version.
    """
    until = None if timeout is None else time.monotonic() + timeout
    etag: str | None = None
    latest: Job | None = None
    lost = 0
    while True:
        left = _LONGEST_POLL if until is None else min(_LONGEST_POLL, until - time.monotonic())
        call = Call(
            method="GET",
            path=f"/v1/jobs/{id_of(job_id)}",
            query={"wait": str(max(0, int(left)))} if etag else {},
            headers={"if-none-match": etag} if etag else {},
            timeout=_LONGEST_POLL + 30.0,
        )
        try:
            reply = yield from exchange(call, _ONCE)
        except (ConnectionFailed, RateLimited, ServerError) as error:
            if until is not None and time.monotonic() >= until:
                raise
            pause = core.retry.pause(min(lost, 5), getattr(error, "retry_after", None))
            yield Pause(seconds=pause if until is None else max(0.0, min(pause, until - time.monotonic())))
            lost += 1
            continue
        lost = 0
        if reply.status != 304:
            etag = reply.headers.get("etag")
            latest = Job.from_json(json_of(reply))
            if on_update is not None:
                on_update(latest)
            if latest.finished:
                return latest
        if until is not None and time.monotonic() >= until:
            state = latest.state if latest else "unknown"
            raise WaitTimeout(f"the job is still {state} after {timeout:g} seconds; it goes on, wait again to resume")
        if until is not None and until - time.monotonic() < 1:
            yield Pause(seconds=max(0.0, min(0.2, until - time.monotonic())))


def events(core: Core, job_id: str, *, after: int | None = None) -> Listing[Job]:
    """Every version of the job as it comes, until it has ended. `after`: only versions behind this one (`Job.version`).

    A broken connection is opened again behind the last version that was seen, as often as the client's `retry` allows
    without any news between.
    """
    lost = 0
    while True:
        call = Call(
            method="GET",
            path=f"/v1/jobs/{id_of(job_id)}/events",
            headers={"accept": "text/event-stream", **({} if after is None else {"last-event-id": str(after)})},
            timeout=_SILENCE,
            stream=True,
        )
        yield from exchange(call, core.retry)
        reader = EventReader()
        failure: BatchsightError = ConnectionFailed("the stream of events ended before the job did")
        while True:
            answer = yield More()
            if isinstance(answer, Lost):
                failure = ConnectionFailed(answer.reason)
                failure.__cause__ = answer.cause
                break
            if not isinstance(answer, Piece) or not answer.data:
                break
            for event in reader.feed(answer.data):
                if event.name == "end":
                    return
                if event.name == "job":
                    job = Job.from_json(json.loads(event.data))
                    lost, after = 0, job.version
                    yield Emit(job)
        if lost >= core.retry.retries:
            raise failure
        yield Pause(seconds=core.retry.pause(lost, reader.retry if lost == 0 else None))
        lost += 1
