"""Schedules as the server answers them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from .models import Failure, Json


@dataclass(frozen=True, kw_only=True)
class ScheduleRun:
    """A time that was due, or a run by hand. `state`: fired, skipped, missed, failed; `job_state` of its job."""

    id: str
    schedule_id: str
    trigger: str
    state: str
    scheduled_at: datetime
    fired_at: datetime
    only_new: bool
    job_id: str | None = None
    job_state: str | None = None
    reason: str | None = None
    error: Failure | None = None

    @classmethod
    def from_json(cls, value: Json) -> ScheduleRun:
        """From the server's form."""
        return cls(
            id=value["id"],
            schedule_id=value["schedule_id"],
            trigger=value["trigger"],
            state=value["state"],
            scheduled_at=datetime.fromisoformat(value["scheduled_at"]),
            fired_at=datetime.fromisoformat(value["fired_at"]),
            only_new=value["only_new"],
            job_id=value.get("job_id"),
            job_state=value.get("job_state"),
            reason=value.get("reason"),
            error=Failure.from_json(value["error"]) if value.get("error") else None,
        )


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A job that repeats. `next_runs`: the next times in its own zone; none while paused."""

    id: str
    name: str
    cron: str
    timezone: str
    job: Json
    overlap: str
    catch_up: str
    catch_up_limit: int
    misfire_grace_seconds: float
    only_new: bool
    paused: bool
    next_at: datetime | None
    next_runs: tuple[datetime, ...]
    last_run: ScheduleRun | None
    created_at: datetime
    updated_at: datetime

    @classmethod
    def from_json(cls, value: Json) -> Schedule:
        """From the server's form."""
        return cls(
            id=value["id"],
            name=value["name"],
            cron=value["cron"],
            timezone=value["timezone"],
            job=value["job"],
            overlap=value["overlap"],
            catch_up=value["catch_up"],
            catch_up_limit=value["catch_up_limit"],
            misfire_grace_seconds=value["misfire_grace_seconds"],
            only_new=value["only_new"],
            paused=value["paused"],
            next_at=datetime.fromisoformat(value["next_at"]) if value.get("next_at") else None,
            next_runs=tuple(datetime.fromisoformat(each) for each in value["next_runs"]),
            last_run=ScheduleRun.from_json(value["last_run"]) if value.get("last_run") else None,
            created_at=datetime.fromisoformat(value["created_at"]),
            updated_at=datetime.fromisoformat(value["updated_at"]),
        )


@dataclass(frozen=True, kw_only=True)
class PreviewTime:
    """A time at which a schedule would fire, and what its URL would be then."""

    at: datetime
    url: str | None = None

    @classmethod
    def from_json(cls, value: Json) -> PreviewTime:
        """From the server's form."""
        return cls(at=datetime.fromisoformat(value["at"]), url=value.get("url"))
