"""What the client does with schedules; see `operations`."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from .calls import Call, Listing, Operation
from .reading import Core, given, id_of, json_of, pages
from .retry import exchange
from .schedule_models import PreviewTime, Schedule, ScheduleRun


def create(
    core: Core,
    name: str,
    cron: str,
    *,
    job: Mapping[str, Any],
    timezone: str = "UTC",
    overlap: str = "skip",
    catch_up: str = "last",
    catch_up_limit: int = 24,
    misfire_grace_seconds: float = 300,
    only_new: bool | None = None,
    paused: bool = False,
    idempotency_key: str | None = None,
) -> Operation[Schedule]:
    """Make a schedule. `job`: as `submit` sends it (kind, source, parameters …), dates in its URLs as `{date}`.

    `overlap`: skip, allow or cancel_previous. `catch_up`: none, last or all (the newest `catch_up_limit`). `only_new`
    left out: true for a prefix.
    """
    body: dict[str, Any] = {
        "name": name,
        "cron": cron,
        "timezone": timezone,
        "job": dict(job),
        "overlap": overlap,
        "catch_up": catch_up,
        "catch_up_limit": catch_up_limit,
        "misfire_grace_seconds": misfire_grace_seconds,
        "only_new": only_new,
        "paused": paused,
    }
    key = idempotency_key or str(uuid.uuid4())
    call = Call(method="POST", path="/v1/schedules", json=body, headers={"idempotency-key": key})
    return Schedule.from_json(json_of((yield from exchange(call, core.retry))))


def get(core: Core, schedule_id: str) -> Operation[Schedule]:
    """The schedule with its next times and its last run. Raises `NotFound`."""
    reply = yield from exchange(Call(method="GET", path=_path(schedule_id)), core.retry)
    return Schedule.from_json(json_of(reply))


def every(core: Core) -> Listing[Schedule]:
    """All schedules, newest first."""
    yield from pages(core, "/v1/schedules", {}, Schedule.from_json)


def change(
    core: Core,
    schedule_id: str,
    *,
    name: str | None = None,
    cron: str | None = None,
    timezone: str | None = None,
    job: Mapping[str, Any] | None = None,
    overlap: str | None = None,
    catch_up: str | None = None,
    catch_up_limit: int | None = None,
    misfire_grace_seconds: float | None = None,
    only_new: bool | None = None,
) -> Operation[Schedule]:
    """Change what is given; the rest stays. A new cron or zone counts from now on, a new job from the next run on."""
    body = {
        "name": name,
        "cron": cron,
        "timezone": timezone,
        "job": None if job is None else dict(job),
        "overlap": overlap,
        "catch_up": catch_up,
        "catch_up_limit": catch_up_limit,
        "misfire_grace_seconds": misfire_grace_seconds,
        "only_new": only_new,
    }
    reply = yield from exchange(Call(method="PATCH", path=_path(schedule_id), json=body), core.retry)
    return Schedule.from_json(json_of(reply))


def pause(core: Core, schedule_id: str) -> Operation[Schedule]:
    """Fire no more until `resume`."""
    reply = yield from exchange(Call(method="POST", path=f"{_path(schedule_id)}/pause"), core.retry)
    return Schedule.from_json(json_of(reply))


def resume(core: Core, schedule_id: str) -> Operation[Schedule]:
    """Fire again from the next time on."""
    reply = yield from exchange(Call(method="POST", path=f"{_path(schedule_id)}/resume"), core.retry)
    return Schedule.from_json(json_of(reply))


def run(
    core: Core, schedule_id: str, *, only_new: bool | None = None, idempotency_key: str | None = None
) -> Operation[ScheduleRun]:
    """Run it now, beside its cron; `only_new=False`: everything, this once. The run names its job."""
    call = Call(
        method="POST",
        path=f"{_path(schedule_id)}/run",
        json={} if only_new is None else {"only_new": only_new},
        headers={"idempotency-key": idempotency_key or str(uuid.uuid4())},
    )
    return ScheduleRun.from_json(json_of((yield from exchange(call, core.retry))))


def runs(core: Core, schedule_id: str, *, state: str | None = None) -> Listing[ScheduleRun]:
    """The history, newest first."""
    yield from pages(core, f"{_path(schedule_id)}/runs", given({"state": state}), ScheduleRun.from_json)


def delete(core: Core, schedule_id: str) -> Operation[None]:
    """Delete it; its jobs stay."""
    yield from exchange(Call(method="DELETE", path=_path(schedule_id)), core.retry)


def preview(
    core: Core, cron: str, *, timezone: str = "UTC", url: str | None = None, count: int = 5
) -> Operation[tuple[PreviewTime, ...]]:
    """When it would fire, and what `url` would be then."""
    body = {"cron": cron, "timezone": timezone, "count": count, **given({"url": url})}
    reply = yield from exchange(Call(method="POST", path="/v1/schedules/preview", json=body), core.retry)
    return tuple(PreviewTime.from_json(each) for each in json_of(reply)["data"])


def _path(schedule_id: str) -> str:
    return f"/v1/schedules/{id_of(schedule_id)}"
