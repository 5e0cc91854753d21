"""What a process remembers of polled jobs: for a moment, never backwards, never for another tenant."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime

from api.snapshots import Snapshots
from pipelines.control.query import JobView
from pipelines.jobs.ids import uuid7
from pipelines.jobs.models import Job, JobPriority
from pipelines.jobs.states import ItemState, JobState, PlanState

TENANT = uuid.uuid4()
JOB = Job(
    job_id=uuid7(),
    tenant_id=TENANT,
    kind="ocr",
    state=JobState.RUNNING,
    priority=JobPriority.NORMAL,
    parameters={},
    source={"type": "none"},
    metadata={},
    plan=PlanState.DONE,
    item_count=3,
    counts=dict.fromkeys(ItemState, 0),
    version=5,
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
    started_at=None,
    finished_at=None,
    cancel_requested_at=None,
    deadline_at=None,
    parent_id=None,
)


def view(version: int = 5) -> JobView:
    return JobView(job=replace(JOB, version=version))


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_snapshot_serves_its_tenant_for_a_moment() -> None:
    clock = Clock()
    snapshots = Snapshots(gpu_second_cost=0, kept=1.0, clock=clock)
    kept = snapshots.keep(view(), since=snapshots.changes)
    assert snapshots.get(TENANT, JOB.job_id) is kept
    assert snapshots.get(uuid.uuid4(), JOB.job_id) is None
    clock.now += 1.0
    assert snapshots.get(TENANT, JOB.job_id) is None


def test_one_reader_renews_a_snapshot_before_the_others_miss_it() -> None:
    clock = Clock()
    snapshots = Snapshots(gpu_second_cost=0, kept=1.0, clock=clock)
    kept = snapshots.keep(view(), since=snapshots.changes)
    clock.now += 0.8
    assert snapshots.get(TENANT, JOB.job_id) is None
    assert snapshots.get(TENANT, JOB.job_id) is kept


def test_a_change_that_was_announced_ends_it_also_while_it_was_being_read() -> None:
    snapshots = Snapshots(gpu_second_cost=0, clock=Clock())
    snapshots.keep(view(), since=snapshots.changes)
    snapshots.forget(JOB.job_id)
    assert snapshots.get(TENANT, JOB.job_id) is None
    since = snapshots.changes
    snapshots.forget(JOB.job_id)
    snapshots.keep(view(), since=since)
    assert snapshots.get(TENANT, JOB.job_id) is None


def test_a_version_never_goes_back() -> None:
    snapshots = Snapshots(gpu_second_cost=0, clock=Clock())
    snapshots.keep(view(6), since=snapshots.changes)
    assert snapshots.keep(view(5), since=snapshots.changes).version == 5
    found = snapshots.get(TENANT, JOB.job_id)
    assert found is not None
    assert found.version == 6


def test_whoever_reads_the_same_version_shares_its_body() -> None:
    snapshots = Snapshots(gpu_second_cost=0, clock=Clock())
    first = snapshots.keep(view(), since=-1)
    assert snapshots.get(TENANT, JOB.job_id) is None, "read before a change: not served"
    assert snapshots.keep(view(), since=-1) is first
    assert first.body is first.body


def test_a_client_with_another_version_is_not_told_that_nothing_changed() -> None:
    snapshot = Snapshots(gpu_second_cost=0).keep(view(), since=0)
    assert snapshot.matches('W/"5"')
    assert snapshot.matches('"4", W/"5"')
    assert snapshot.knows(None)
    assert not snapshot.matches(None)
    assert not snapshot.knows('W/"6"')
