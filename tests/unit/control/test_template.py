"""A schedule's job is stored whole."""

from __future__ import annotations

import json
import uuid
from dataclasses import fields
from datetime import UTC, datetime

from pipelines.control.template import JobTemplate
from pipelines.jobs.exports import ExportFormat, ExportOptions
from pipelines.jobs.models import JobPriority
from pipelines.steps.submit import Submission

FULL = Submission(
    kind="ocr",
    parameters={"max_tiles": 6},
    source={"type": "prefix", "url": "s3://scans/{date}/"},
    priority=JobPriority.BULK,
    metadata={"team": "archive"},
    export=ExportOptions(url="s3://results/{date}/", format=ExportFormat.PARQUET),
    webhook_endpoint_id=uuid.UUID(int=7),
)


def test_everything_that_a_submission_says_comes_back() -> None:
    unset = {field.name for field in fields(Submission) if getattr(FULL, field.name) is None}
    assert unset == {"deadline_at"}, "a new option of jobs belongs into the template, and into this test"
    template = JobTemplate(submission=FULL, deadline_seconds=60)
    assert JobTemplate.from_json(json.loads(json.dumps(template.to_json()))) == template


def test_a_runs_job_has_its_dates_and_its_deadline() -> None:
    fired = datetime(2026, 1, 31, 3, tzinfo=UTC)
    job = JobTemplate(submission=FULL, deadline_seconds=60).at(datetime(2026, 1, 31, 2, 30, tzinfo=UTC), fired=fired)
    assert job.source["url"] == "s3://scans/2026-01-31/"
    assert job.export is not None
    assert job.export.url == "s3://results/2026-01-31/"
    assert job.deadline_at == datetime(2026, 1, 31, 3, 1, tzinfo=UTC)
    assert job.webhook_endpoint_id == FULL.webhook_endpoint_id


def test_what_was_not_said_stays_unsaid() -> None:
    bare = JobTemplate(submission=Submission(kind="chat", parameters={}, source={"type": "none"}))
    assert JobTemplate.from_json(json.loads(json.dumps(bare.to_json()))) == bare
    now = datetime(2026, 1, 2, tzinfo=UTC)
    assert bare.at(now, fired=now) == bare.submission
