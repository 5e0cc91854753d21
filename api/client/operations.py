"""Every operation of the client, written once as a generator of steps."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

from .calls import Call, Emit, Listing, Operation, Pause, Reply, Upload
from .errors import ConnectionFailed, InvalidRequest, ServerError, WaitTimeout
from .models import File, Item, Job, KindInfo, Result
from .retry import RetryPolicy, exchange

_PAGE = 200
_RESULTS_PAGE = 500
_LONGEST_POLL = 30
_UPLOAD_TIMEOUT = 3_600.0
_POLL_RETRY = RetryPolicy(retries=0)


class Core(Protocol):
    """What an operation needs to know of its client."""

    retry: RetryPolicy


Update = Callable[[Job], None]


def submit(
    core: Core,
    kind: str,
    *,
    source: Mapping[str, Any],
    parameters: Mapping[str, Any] | None = None,
    priority: str = "normal",
    metadata: Mapping[str, Any] | None = None,
    deadline: datetime | None = None,
    idempotency_key: str | None = None,
) -> Operation[Job]:
    """Submit a job. An idempotency key is added, so that a retry never makes a second job."""
    body: dict[str, Any] = {
        "kind": kind,
        "source": dict(source),
        "parameters": dict(parameters or {}),
        "priority": priority,
        "metadata": dict(metadata or {}),
    }
    if deadline is not None:
        body["deadline_at"] = deadline.isoformat()
    key = idempotency_key or str(uuid.uuid4())
    reply = yield from exchange(
        Call(method="POST", path="/v1/jobs", json=body, headers={"idempotency-key": key}), core.retry
    )
    return Job.from_json(_json(reply))


def job(core: Core, job_id: str) -> Operation[Job]:
    """The job as it is now. Raises `NotFound`."""
    reply = yield from exchange(Call(method="GET", path=f"/v1/jobs/{_id(job_id)}"), core.retry)
    return Job.from_json(_json(reply))


def jobs(
    core: Core, *, state: str | None = None, kind: str | None = None, metadata: Mapping[str, str] | None = None
) -> Listing[Job]:
    """All jobs, newest first; pages are fetched as they are needed."""
    query = _given({"state": state, "kind": kind})
    query.update({f"metadata[{name}]": value for name, value in (metadata or {}).items()})
    yield from _pages(core, "/v1/jobs", query, Job.from_json)


def wait(core: Core, job_id: str, *, timeout: float | None = None, on_update: Update | None = None) -> Operation[Job]:
    """Wait until the job has ended. `timeout` in seconds (None: for ever); raises `WaitTimeout`.

    The server answers as soon as something changes (a long poll); a server that is away is asked again until the time
    is up. `on_update` is called with every new version.
    """
    until = None if timeout is None else time.monotonic() + timeout
    etag: str | None = None
    latest: Job | None = None
    lost = 0
    while True:
        left = _LONGEST_POLL if until is None else min(_LONGEST_POLL, until - time.monotonic())
        call = Call(
            method="GET",
            path=f"/v1/jobs/{_id(job_id)}",
            query={"wait": str(max(0, int(left)))} if etag else {},
            headers={"if-none-match": etag} if etag else {},
            timeout=_LONGEST_POLL + 30.0,
        )
        try:
            reply = yield from exchange(call, _POLL_RETRY)
        except (ConnectionFailed, ServerError):
            if until is not None and time.monotonic() >= until:
                raise
            yield Pause(seconds=core.retry.pause(min(lost, 5), None))
            lost += 1
            continue
        lost = 0
        if reply.status != 304:
            etag = reply.headers.get("etag")
            latest = Job.from_json(_json(reply))
            if on_update is not None:
                on_update(latest)
            if latest.finished:
                return latest
        if until is not None and time.monotonic() >= until:
            state = latest.state if latest else "unknown"
            raise WaitTimeout(f"the job is still {state} after {timeout:g} seconds; it goes on, wait again to resume")
        if until is not None and until - time.monotonic() < 1:
            yield Pause(seconds=max(0.0, min(0.2, until - time.monotonic())))


def items(core: Core, job_id: str, *, state: str | None = None, code: str | None = None) -> Listing[Item]:
    """The job's items in order, by state or by error code if wanted."""
    yield from _pages(core, f"/v1/jobs/{_id(job_id)}/items", _given({"state": state, "code": code}), Item.from_json)


def item(core: Core, job_id: str, seq: int) -> Operation[Item]:
    """One item, with its text where it has one."""
    reply = yield from exchange(Call(method="GET", path=f"/v1/jobs/{_id(job_id)}/items/{seq}"), core.retry)
    return Item.from_json(_json(reply))


def results(core: Core, job_id: str, *, include: str = "succeeded", after: int | None = None) -> Listing[Result]:
    """The results in order, in flat memory. `include="all"` adds failed items; `after`: only later items."""
    while True:
        query = _given({"include": include, "after": None if after is None else str(after)})
        query["limit"] = str(_RESULTS_PAGE)
        call = Call(method="GET", path=f"/v1/jobs/{_id(job_id)}/results", query=query)
        reply = yield from exchange(call, core.retry)
        lines = [line for line in reply.body.split(b"\n") if line]
        for line in lines:
            result = Result.from_json(json.loads(line))
            after = result.seq
            yield Emit(result)
        if len(lines) < _RESULTS_PAGE:
            return


def markdown(core: Core, job_id: str) -> Operation[str]:
    """All results as one Markdown text: each document's pages in order."""
    call = Call(method="GET", path=f"/v1/jobs/{_id(job_id)}/results", headers={"accept": "text/markdown"})
    reply = yield from exchange(call, core.retry)
    return reply.body.decode()


def cancel(core: Core, job_id: str) -> Operation[Job]:
    """Cancel what is queued and what runs; what has succeeded is kept."""
    reply = yield from exchange(Call(method="POST", path=f"/v1/jobs/{_id(job_id)}/cancel"), core.retry)
    return Job.from_json(_json(reply))


def redrive(
    core: Core, job_id: str, *, codes: Sequence[str] | None = None, idempotency_key: str | None = None
) -> Operation[Job]:
    """Run the failed items again (all, or those with these error codes) as a child job."""
    call = Call(
        method="POST",
        path=f"/v1/jobs/{_id(job_id)}/redrive",
        json={} if codes is None else {"codes": list(codes)},
        headers={"idempotency-key": idempotency_key or str(uuid.uuid4())},
    )
    reply = yield from exchange(call, core.retry)
    return Job.from_json(_json(reply))


def kinds(core: Core) -> Operation[tuple[KindInfo, ...]]:
    """What can be asked."""
    reply = yield from exchange(Call(method="GET", path="/v1/kinds"), core.retry)
    return tuple(KindInfo.from_json(entry) for entry in _json(reply)["data"])


def upload(
    core: Core, content: str | PathLike[str] | bytes, *, filename: str | None = None, purpose: str = "user_data"
) -> Operation[File]:
    """Upload a file (a path, or bytes with a `filename`)."""
    if isinstance(content, bytes):
        part = Upload(filename=filename or "upload", content=content, fields={"purpose": purpose})
    else:
        path = Path(content)
        part = Upload(filename=filename or path.name, content=path, fields={"purpose": purpose})
    call = Call(method="POST", path="/v1/files", upload=part, timeout=_UPLOAD_TIMEOUT)
    reply = yield from exchange(call, core.retry)
    return File.from_json(_json(reply))


def file(core: Core, file_id: str) -> Operation[File]:
    """What is known of an uploaded file."""
    reply = yield from exchange(Call(method="GET", path=f"/v1/files/{_id(file_id)}"), core.retry)
    return File.from_json(_json(reply))


def files(core: Core, *, purpose: str | None = None) -> Listing[File]:
    """All uploaded files, newest first."""
    yield from _pages(core, "/v1/files", _given({"purpose": purpose}), File.from_json)


def delete_file(core: Core, file_id: str) -> Operation[None]:
    """Delete an uploaded file."""
    yield from exchange(Call(method="DELETE", path=f"/v1/files/{_id(file_id)}"), core.retry)


def file_content(core: Core, file_id: str) -> Operation[bytes]:
    """The bytes of an uploaded file."""
    call = Call(method="GET", path=f"/v1/files/{_id(file_id)}/content", timeout=_UPLOAD_TIMEOUT)
    reply = yield from exchange(call, core.retry)
    return reply.body


def _pages(core: Core, path: str, query: Mapping[str, str], read: Callable[[Mapping[str, Any]], Any]) -> Listing[Any]:
    after: str | None = None
    while True:
        page_query = {**query, "limit": str(_PAGE), **_given({"after": after})}
        page = _json((yield from exchange(Call(method="GET", path=path, query=page_query), core.retry)))
        for entry in page["data"]:
            yield Emit(read(entry))
        after = page.get("last_id")
        if not page["has_more"] or after is None:
            return


def _json(reply: Reply) -> dict[str, Any]:
    try:
        value = json.loads(reply.body)
    except ValueError as error:
        raise ConnectionFailed("the server's answer is not JSON; is this address a Batchsight api?") from error
    if not isinstance(value, dict):
        raise ConnectionFailed("the server's answer is not an object; is this address a Batchsight api?")
    return value


def _given(query: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in query.items() if value is not None}


def _id(value: str) -> str:
    """Only what an id may hold: an id never changes the path."""
    text = str(value)
    if not text or not all(character.isalnum() or character in "-_" for character in text):
        raise InvalidRequest(f"{text!r} is not an id", status=400, code="invalid_parameter", param="id")
    return text
