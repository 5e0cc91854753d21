"""A schedule's job: a submission whose addresses may hold dates, as it is stored and as it is at one time."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from pipelines.control.placeholders import fill, fill_source
from pipelines.jobs.exports import ExportOptions
from pipelines.jobs.models import JobPriority, JsonObject
from pipelines.steps.submit import Submission


@dataclass(frozen=True, kw_only=True)
class JobTemplate:
    """`submission` as a client would send it, dates unfilled; `deadline_seconds`: of each run, from its firing on."""

    submission: Submission
    deadline_seconds: int | None = None

    @property
    def lists_objects(self) -> bool:
        """True where the source is a listing, whose objects have versions."""
        return self.submission.source.get("type") == "prefix"

    def at(self, scheduled: datetime, *, fired: datetime) -> Submission:
        """The job of one run. `scheduled`: in the schedule's own zone, which the dates follow.

        Raises `InvalidParameter` where an address holds what is no date.
        """
        seconds = self.deadline_seconds
        export = self.submission.export
        if export is not None and export.url is not None:
            export = replace(export, url=fill(export.url, scheduled, param="export.url"))
        return replace(
            self.submission,
            source=fill_source(self.submission.source, scheduled),
            deadline_at=None if seconds is None else fired + timedelta(seconds=seconds),
            export=export,
        )

    def to_json(self) -> dict[str, Any]:
        """The form in `schedules.template`."""
        job = self.submission
        told = job.webhook_endpoint_id
        return {
            "kind": job.kind,
            "parameters": dict(job.parameters),
            "source": dict(job.source),
            "priority": int(job.priority),
            "metadata": dict(job.metadata),
            "deadline_seconds": self.deadline_seconds,
            "export": None if job.export is None else {"url": job.export.url, "options": job.export.to_json()},
            "webhook_endpoint_id": None if told is None else str(told),
        }

    @classmethod
    def from_json(cls, value: JsonObject) -> JobTemplate:
        """The inverse of `to_json`."""
        export = value["export"]
        told = value.get("webhook_endpoint_id")  # of templates that are older than webhooks: none
        submission = Submission(
            kind=value["kind"],
            parameters=value["parameters"],
            source=value["source"],
            priority=JobPriority(value["priority"]),
            metadata=value["metadata"],
            export=None if export is None else ExportOptions.from_json(export["url"], export["options"]),
            webhook_endpoint_id=None if told is None else uuid.UUID(told),
        )
        return cls(submission=submission, deadline_seconds=value["deadline_seconds"])
