"""Every operation of the client, written once as a generator of steps."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from .calls import Call, Emit, Listing, Operation
from .models import Item, Job, KindInfo, Result, UsageReport
from .reading import Core
from .reading import given as _given
from .reading import id_of as _id
from .reading import json_of as _json
from .reading import pages as _pages
from .retry import exchange

_RESULTS_PAGE = 500


def submit(
    core: Core,
    kind: str,
    *,
    source: Mapping[str, Any],
    parameters: Mapping[str, Any] | None = None,
    priority: str = "normal",
    metadata: Mapping[str, Any] | None = None,
    deadline: datetime | None = None,
    export: Mapping[str, Any] | None = None,
    webhook: str | None = None,
    idempotency_key: str | None = None,
) -> Operation[Job]:
    """Submit a job. An idempotency key is added, so that a retry never makes a second job.

    `export`: options of `exports.create`; the results are written when the job ends.
    `webhook`: the id of an endpoint that is told of its end, whatever it subscribes to.
    """
    body: dict[str, Any] = {
        "kind": kind,
        "source": dict(source),
        "parameters": dict(parameters or {}),
        "priority": priority,
        "metadata": dict(metadata or {}),
    }
    if deadline is not None:
        body["deadline_at"] = _moment(deadline)
    if export is not None:
        body["export"] = dict(export)
    if webhook is not None:
        body["webhook"] = {"endpoint_id": webhook}
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
    core: Core,
    *,
    state: str | Sequence[str] | None = None,
    kind: str | None = None,
    metadata: Mapping[str, str] | None = None,
    created_after: datetime | None = None,
    created_before: datetime | None = None,
    parent_id: str | None = None,
    schedule_id: str | None = None,
) -> Listing[Job]:
    """All jobs, newest first; pages are fetched as they are needed. `parent_id`: redrives of this job."""
    query: dict[str, str | Sequence[str]] = dict(
        _given(
            {
                "kind": kind,
                "created_after": _moment(created_after),
                "created_before": _moment(created_before),
                "parent_id": parent_id,
                "schedule_id": schedule_id,
            }
        )
    )
    if state is not None:
        query["state"] = [state] if isinstance(state, str) else list(state)
    query.update({f"metadata[{name}]": value for name, value in (metadata or {}).items()})
    yield from _pages(core, "/v1/jobs", query, Job.from_json)


def items(core: Core, job_id: str, *, state: str | None = None, code: str | None = None) -> Listing[Item]:
    """The job's items in order, by state or by error code if wanted."""
    yield from _pages(core, f"/v1/jobs/{_id(job_id)}/items", _given({"state": state, "code": code}), Item.from_json)


def item(core: Core, job_id: str, seq: int) -> Operation[Item]:
    """One item, with its text where it has one."""
    reply = yield from exchange(Call(method="GET", path=f"/v1/jobs/{_id(job_id)}/items/{seq}"), core.retry)
    return Item.from_json(_json(reply))


def item_tiles(core: Core, job_id: str, seq: int) -> Operation[bytes]:
    """What the model saw of an item: its tiles or frames in order, as one PNG picture."""
    call = Call(method="GET", path=f"/v1/jobs/{_id(job_id)}/items/{seq}/tiles")
    reply = yield from exchange(call, core.retry)
    return reply.body


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
    return (yield from _document(core, job_id, "text/markdown"))


def text(core: Core, job_id: str) -> Operation[str]:
    """All results as plain text: each document's pages in order, a form feed between them."""
    return (yield from _document(core, job_id, "text/plain"))


def _document(core: Core, job_id: str, accept: str) -> Operation[str]:
    call = Call(method="GET", path=f"/v1/jobs/{_id(job_id)}/results", headers={"accept": accept})
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


def usage(
    core: Core, *, created_after: datetime | None = None, created_before: datetime | None = None
) -> Operation[UsageReport]:
    """What was spent, by all jobs created in a time."""
    query = _given({"created_after": _moment(created_after), "created_before": _moment(created_before)})
    return UsageReport.from_json(
        _json((yield from exchange(Call(method="GET", path="/v1/usage", query=query), core.retry)))
    )


def _moment(at: datetime | None) -> str | None:
    """With its offset: a time without one is this machine's own."""
    return None if at is None else at.astimezone().isoformat()
