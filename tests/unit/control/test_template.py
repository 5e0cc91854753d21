"""A schedule's job is read back as it was stored."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime

import pytest

from pipelines.control.template import JobTemplate
from pipelines.steps.submit import Submission


@pytest.mark.parametrize("endpoint", [None, uuid.UUID(int=7)])
def test_a_template_keeps_whom_to_tell_of_each_run(endpoint: uuid.UUID | None) -> None:
    submission = Submission(
        kind="ocr", parameters={}, source={"type": "prefix", "url": "s3://scans/{date}/"}, webhook_endpoint_id=endpoint
    )
    template = JobTemplate(submission=submission)
    assert JobTemplate.from_json(json.loads(json.dumps(template.to_json()))) == template
    now = datetime(2026, 1, 2, tzinfo=UTC)
    assert template.at(now, fired=now).webhook_endpoint_id == endpoint
