"""Schedules and their runs, as clients send and see them."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from api.schemas.base import Answer, Moment, Request
from api.schemas.jobs import Failure, JobRequest, Priority
from pipelines.jobs.schedules import CatchUp, Overlap, RunState, RunTrigger
from pipelines.jobs.states import JobState

Name = Annotated[str, Field(min_length=1, max_length=200, description="unique among your schedules")]
Cron = Annotated[
    str,
    Field(
        min_length=1,
        max_length=200,
        description="five fields: minute, hour, day of month, month, day of week",
        examples=["30 2 * * *"],
    ),
]
TimeZone = Annotated[str, Field(min_length=1, max_length=100, description="an IANA name", examples=["Europe/Berlin"])]
OverlapPolicy = Annotated[Overlap, Field(strict=False, description="when the run before has not ended")]
CatchUpPolicy = Annotated[CatchUp, Field(strict=False, description="which times missed in an outage are made up for")]
CatchUpLimit = Annotated[int, Field(ge=1, le=1_000, description="of `catch_up` all: how many, the newest")]
Grace = Annotated[float, Field(ge=0, le=7 * 86_400, description="later than that, a time was missed")]
OnlyNew = Annotated[
    bool, Field(description="only objects that no earlier run has done in this version; prefixes alone have versions")
]


class JobTemplate(JobRequest):
    """The job of each run. Its URLs may hold `{date}`, `{yesterday}`, `{tomorrow}`, or with a form `{date:%Y/%m}`."""

    priority: Priority = "bulk"
    deadline_at: None = Field(None, description="a fixed time fits no job that repeats; use `deadline_seconds`")
    dry_run: Literal[False] = Field(default=False, description="a schedule's jobs are meant; see `previewSchedule`")
    deadline_seconds: int | None = Field(
        None, ge=1, le=366 * 86_400, description="items that have not run so long after the run was fired fail"
    )


class ScheduleRequest(Request):
    """A job that repeats."""

    name: Name
    cron: Cron
    timezone: TimeZone = "UTC"
    job: JobTemplate
    overlap: OverlapPolicy = Overlap.SKIP
    catch_up: CatchUpPolicy = CatchUp.LAST
    catch_up_limit: CatchUpLimit = 24
    misfire_grace_seconds: Grace = 300
    only_new: OnlyNew | None = Field(None, description="as below; left out: true for a prefix")
    paused: bool = False


class ScheduleChange(Request):
    """What is to change; what is left out, or null, stays."""

    name: Name | None = None
    cron: Cron | None = None
    timezone: TimeZone | None = None
    job: JobTemplate | None = None
    overlap: OverlapPolicy | None = None
    catch_up: CatchUpPolicy | None = None
    catch_up_limit: CatchUpLimit | None = None
    misfire_grace_seconds: Grace | None = None
    only_new: OnlyNew | None = None


class RunRequest(Request):
    """How one run by hand differs from the others."""

    only_new: bool | None = Field(None, description="false: everything, once; left out: as the schedule has it")


class PreviewRequest(Request):
    """A schedule that might be."""

    cron: Cron
    timezone: TimeZone = "UTC"
    url: str | None = Field(None, min_length=1, max_length=8_192, description="an address with dates to be filled in")
    after: Moment | None = Field(None, description="left out: now")
    count: int = Field(5, ge=1, le=100)


class PreviewTime(Answer):
    """A time at which it would fire, in the zone's own offset."""

    at: datetime
    url: str | None = None


class Preview(Answer):
    """The next times; fewer than asked for where there are no more in fifty years."""

    object: Literal["list"] = "list"
    data: list[PreviewTime]


class ScheduleRun(Answer):
    """One due time, or one run by hand. `job_state`: null once the job is forgotten."""

    id: uuid.UUID
    object: Literal["schedule_run"] = "schedule_run"
    schedule_id: uuid.UUID
    trigger: RunTrigger
    state: RunState
    scheduled_at: datetime
    fired_at: datetime
    only_new: bool
    job_id: uuid.UUID | None = None
    job_state: JobState | None = None
    reason: str | None = Field(None, description="why it was skipped or missed")
    error: Failure | None = Field(None, description="why its job was refused")
    links: dict[str, str]


class Template(Answer):
    """The job of each run, as it was sent; long lists are shortened."""

    kind: str
    source: dict[str, Any]
    parameters: dict[str, Any]
    priority: Priority
    metadata: dict[str, Any]
    deadline_seconds: int | None = None
    export: dict[str, Any] | None = None
    webhook_endpoint_id: uuid.UUID | None = None


class Schedule(Answer):
    """A schedule. `next_runs`: the next times in its own zone, the first being `next_at`; none while paused."""

    id: uuid.UUID
    object: Literal["schedule"] = "schedule"
    name: str
    cron: str
    timezone: str
    job: Template
    overlap: Overlap
    catch_up: CatchUp
    catch_up_limit: int
    misfire_grace_seconds: float
    only_new: bool
    paused: bool
    next_at: datetime | None = None
    next_runs: list[datetime]
    last_run: ScheduleRun | None = None
    created_at: datetime
    updated_at: datetime
    links: dict[str, str]


class DeletedSchedule(Answer):
    """It fires no more; its jobs stay."""

    id: uuid.UUID
    object: Literal["schedule"] = "schedule"
    deleted: bool = True
