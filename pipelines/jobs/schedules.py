"""The frozen values of schedules: what repeats, and what became of each time it was due."""

from __future__ import annotations

import enum
import uuid
from dataclasses import dataclass
from datetime import datetime

from pipelines.jobs.models import JsonObject
from pipelines.jobs.states import JobState


class Overlap(enum.StrEnum):
    """What happens at a time that is due while the job of an earlier run has not ended."""

    SKIP = "skip"  # nothing: the time is left out
    ALLOW = "allow"  # both run
    CANCEL_PREVIOUS = "cancel_previous"  # the earlier job is cancelled


class CatchUp(enum.StrEnum):
    """What becomes of times that were missed, because nobody was there to fire them."""

    NONE = "none"  # they are left out
    LAST = "last"  # the last one is made up for
    ALL = "all"  # all of them, the newest so many, one after another


class RunTrigger(enum.StrEnum):
    """Who asked for a run."""

    CRON = "cron"
    MANUAL = "manual"


class RunState(enum.StrEnum):
    """What became of a due time. What became of its job is the job's own state."""

    FIRED = "fired"  # it has a job
    SKIPPED = "skipped"  # the run before had not ended
    MISSED = "missed"  # it was too late, and the schedule does not catch up; one row for several times in a row
    FAILED = "failed"  # the job was refused: the error says why; the next time is tried as if nothing had been


@dataclass(frozen=True, kw_only=True)
class ScheduleRules:
    """How a schedule behaves. `misfire_grace` in seconds: later than that, a time was missed."""

    cron: str
    timezone: str
    overlap: Overlap = Overlap.SKIP
    catch_up: CatchUp = CatchUp.LAST
    catch_up_limit: int = 24
    misfire_grace: float = 300.0
    only_new: bool = True


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A schedule. `template`: the job, as `pipelines.control.template` stores it; `next_at`: null while paused."""

    schedule_id: uuid.UUID
    tenant_id: uuid.UUID
    name: str
    rules: ScheduleRules
    template: JsonObject
    next_at: datetime | None
    paused_at: datetime | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, kw_only=True)
class ScheduleRun:
    """One due time (or one run by hand) and what became of it. `job_state`: null where the job is forgotten."""

    run_id: uuid.UUID
    schedule_id: uuid.UUID
    trigger: RunTrigger
    scheduled_at: datetime
    fired_at: datetime
    state: RunState
    only_new: bool
    job_id: uuid.UUID | None = None
    job_state: JobState | None = None
    error_code: str | None = None
    error_message: str | None = None
