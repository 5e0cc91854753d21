"""Snapshots cost what happened, and always fit; a job ends by a full count."""

from __future__ import annotations

import uuid

import psycopg
import pytest
from sqlalchemy import text

from pipelines.jobs.errors import StoreUnavailable
from pipelines.jobs.models import Job, MediaRef
from pipelines.jobs.outcomes import Cancelled, Failed, Succeeded
from pipelines.jobs.states import ItemState, JobState
from pipelines.store import jobs, progress, sweep
from pipelines.store.jobs import FailedAtPlan, NeedsPaging, PlannedDocument
from tests.integration.store.world import World, prepared, result


@pytest.fixture
def tenant(world: World) -> uuid.UUID:
    return world.tenant()


def fold(world: World) -> progress.Folded:
    with world.database.begin() as conn:
        return progress.fold(conn)


def seen(world: World, tenant: uuid.UUID, job: uuid.UUID) -> Job:
    with world.database.begin() as conn:
        found = jobs.get_job(conn, tenant, job)
    assert found is not None
    return found


def counts(job: Job) -> dict[str, int]:
    return {str(state): n for state, n in job.counts.items() if n}


def finalise(world: World, job: uuid.UUID) -> JobState | None:
    with world.database.begin() as conn:
        return progress.finalise(conn, job)


def test_a_snapshot_counts_every_state(world: World, tenant: uuid.UUID) -> None:
    job = world.job(tenant, 20)
    world.complete(*((item, prepared()) for item in world.claim(job, range(8))))
    one, two, three, _running = world.claim_ready(job, range(4))
    world.complete((one, Succeeded(result=result())), (two, Failed(code="bad", message="x")), (three, Cancelled()))
    world.claim(job, [10, 11])
    world.rows("UPDATE items SET enqueued_at = now() WHERE seq IN (5, 12) RETURNING 1")
    fold(world)
    found = seen(world, tenant, job)
    assert counts(found) == world.states(job)
    assert found.state is JobState.RUNNING
    assert (found.item_count, found.errors) == (20, {"bad": 1})
    assert found.usage == {
        "prompt_tokens": 10,
        "cached_tokens": 2,
        "completion_tokens": 3,
        "tiles": 4,
        "device_seconds": 0.5,
    }


def test_the_version_grows_only_when_something_changed(world: World, tenant: uuid.UUID) -> None:
    job = world.job(tenant, 4)
    quiet = world.job(tenant, 1)
    fold(world)
    before = seen(world, tenant, job), seen(world, tenant, quiet)
    assert fold(world).written == 0
    world.succeed(job, [0])
    folded = fold(world)
    assert (folded.written, folded.succeeded, folded.ended) == (1, 1, 1)
    assert seen(world, tenant, job).version == before[0].version + 1
    assert seen(world, tenant, quiet).version == before[1].version


def test_deltas_are_folded_once_and_add_up(world: World, tenant: uuid.UUID) -> None:
    job = world.job(tenant, 6)
    for seq in range(6):
        world.succeed(job, [seq])
        if seq % 2:
            fold(world)
    fold(world)
    assert counts(seen(world, tenant, job)) == {"succeeded": 6}
    assert seen(world, tenant, job).usage["prompt_tokens"] == 60
    assert world.rows("SELECT count(*) FROM job_deltas")[0][0] == 0


def test_a_fold_that_is_undone_loses_no_count(world: World, tenant: uuid.UUID) -> None:
    job = world.job(tenant, 2)
    world.succeed(job, [0])
    with world.database.begin() as conn:
        progress.fold(conn)
        conn.rollback()
    fold(world)
    assert counts(seen(world, tenant, job)) == {"pending": 1, "succeeded": 1}


def test_a_snapshot_that_changed_under_our_hands_is_not_overwritten(
    world: World, tenant: uuid.UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = world.job(tenant, 2)
    world.succeed(job, [0])
    # Another writer comes between the reading and the writing of one fold.
    write = progress._WRITE
    monkeypatch.setattr(
        progress,
        "_WRITE",
        text(write.text.replace("p.version = e.version", "p.version = e.version + 1")),
    )
    with pytest.raises(StoreUnavailable):
        fold(world)
    monkeypatch.undo()
    fold(world)
    assert counts(seen(world, tenant, job)) == {"pending": 1, "succeeded": 1}


def test_a_frozen_leaders_fold_blocks_nobody_and_counts_nothing_twice(
    world: World, tenant: uuid.UUID, database_url: str
) -> None:
    job = world.job(tenant, 3)
    world.succeed(job, [0])
    with world.database.begin() as frozen:
        frozen.execute(progress._READ)
        world.succeed(job, [1])
        fold(world)
        assert counts(seen(world, tenant, job))["succeeded"] == 1
        frozen.rollback()
    fold(world)
    assert counts(seen(world, tenant, job)) == {"pending": 1, "succeeded": 2}


def test_listeners_hear_of_a_new_snapshot(world: World, tenant: uuid.UUID) -> None:
    job = world.job(tenant, 1)
    with psycopg.connect(world.database.url, autocommit=True) as conn:
        conn.execute("LISTEN batchsight_progress")
        fold(world)
        assert [note.payload for note in conn.notifies(timeout=5, stop_after=1)] == [str(job)]


@pytest.mark.parametrize(
    ("good", "bad", "state"),
    [(3, 0, JobState.SUCCEEDED), (2, 1, JobState.PARTIAL), (0, 3, JobState.FAILED)],
)
def test_a_job_ends_by_the_roll_up_rule(world: World, tenant: uuid.UUID, good: int, bad: int, state: JobState) -> None:
    job = world.job(tenant, 3, ready=True)
    assert finalise(world, job) is None
    claimed = world.claim_ready(job, range(3))
    world.complete(*((item, Succeeded(result=result())) for item in claimed[:good]))
    world.complete(*((item, Failed(code="oops", message="x")) for item in claimed[good:]))
    fold(world)
    with world.database.begin() as conn:
        assert progress.finished_jobs(conn) == (job,)
    assert finalise(world, job) is state
    assert finalise(world, job) is None
    found = seen(world, tenant, job)
    assert found.state is state
    assert found.finished_at is not None
    assert counts(found) == world.states(job)
    assert found.errors == ({"oops": bad} if bad else {})
    assert found.usage.get("completion_tokens", 0) == 3 * good
    assert fold(world).written == 0


def test_a_job_is_finalised_from_deltas_that_nobody_folded(world: World, tenant: uuid.UUID) -> None:
    job = world.job(tenant, 2)
    world.succeed(job, [0, 1])
    with world.database.begin() as conn:
        assert progress.touched_jobs(conn) == (job,)
        assert progress.finished_jobs(conn, job_ids=[job]) == (job,)
    assert finalise(world, job) is JobState.SUCCEEDED
    assert seen(world, tenant, job).usage["tiles"] == 8
    assert world.rows("SELECT count(*) FROM job_deltas")[0][0] == 0


def test_a_job_waits_for_documents_that_are_not_paged(world: World, tenant: uuid.UUID) -> None:
    media = (MediaRef(url="s3://b/x"),)
    planned = [PlannedDocument(name="a", media=media), PlannedDocument(name="b", media=media, items=NeedsPaging())]
    job = world.job(tenant, 0, planned=planned)
    world.succeed(job, [0])
    fold(world)
    assert seen(world, tenant, job).state is JobState.PLANNING
    assert finalise(world, job) is None
    world.rows("UPDATE documents SET state = 'done' WHERE state = 'pending' RETURNING 1")
    assert finalise(world, job) is JobState.SUCCEEDED


def test_a_job_whose_plan_failed_keeps_what_it_has(world: World, tenant: uuid.UUID) -> None:
    job = world.submitted(tenant)
    with world.database.begin() as conn:
        lease = jobs.claim_plan(conn, job, worker="p", lease=60)
        assert lease is not None
        planned = [PlannedDocument(name="a", media=(MediaRef(url="s3://b/x"),))]
        lease = jobs.append_plan(conn, lease, documents=planned, cursor=None, done=False)
        assert lease is not None
        assert jobs.fail_plan(conn, lease, code="source_forbidden", message="not yours")
    assert finalise(world, job) is None
    world.succeed(job, [0])
    assert finalise(world, job) is JobState.PARTIAL
    found = seen(world, tenant, job)
    assert (found.error_code, found.error_message) == ("source_forbidden", "not yours")


def test_a_job_of_failed_entries_only_fails(world: World, tenant: uuid.UUID) -> None:
    planned = [PlannedDocument(name="a", media=(), items=FailedAtPlan(code="invalid_parameter", message="x"))]
    job = world.job(tenant, 0, planned=planned)
    fold(world)
    assert finalise(world, job) is JobState.FAILED
    assert seen(world, tenant, job).errors == {"invalid_parameter": 1}


def test_a_cancelled_job_ends_when_its_last_item_has(world: World, tenant: uuid.UUID) -> None:
    job = world.job(tenant, 2)
    (running,) = world.claim(job, [0])
    world.rows("UPDATE jobs SET cancel_requested_at = now() RETURNING 1")
    with world.database.begin() as conn:
        sweep.cancel_waiting(conn, job)
        assert progress.finished_jobs(conn) == ()
    world.complete((running, Cancelled()))
    assert finalise(world, job) is JobState.CANCELLED
    assert counts(seen(world, tenant, job)) == {str(ItemState.CANCELLED): 2}
