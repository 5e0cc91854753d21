"""What ends because time passed."""

from __future__ import annotations

import uuid

import pytest

from pipelines.jobs.models import MediaRef
from pipelines.jobs.outcomes import Released, Succeeded
from pipelines.store import dispatch, documents, jobs, progress, sweep
from pipelines.store.jobs import NeedsPaging, PlannedDocument
from tests.integration.store.world import LEASE, World, prepared, result


@pytest.fixture
def tenant(world: World) -> uuid.UUID:
    return world.tenant()


def expire(world: World) -> tuple[sweep.LostLease, ...]:
    world.rows("UPDATE items SET lease_until = now() - interval '1 s' WHERE lease_until IS NOT NULL RETURNING 1")
    with world.database.begin() as conn:
        return sweep.expire_items(conn)


def dispatched(world: World) -> None:
    world.rows("UPDATE items SET enqueued_at = now() WHERE state IN ('pending', 'ready') RETURNING 1")


def test_a_lost_lease_goes_back_one_step(world: World, tenant: uuid.UUID) -> None:
    job = world.job(tenant, 2)
    world.claim(job, [0])
    world.job(tenant, 1)
    other = world.job(tenant, 1, ready=True)
    world.claim_ready(other, [0], worker="dead")
    lost = {(entry.job_id, entry.state, entry.losses, entry.worker) for entry in expire(world)}
    assert lost == {(job, "pending", 1, "w"), (other, "ready", 1, "dead")}
    assert world.item(other, 0).pack_key is not None


def test_a_lease_that_still_runs_is_left_alone(world: World, tenant: uuid.UUID) -> None:
    job = world.job(tenant, 1)
    world.claim(job, [0])
    with world.database.begin() as conn:
        assert sweep.expire_items(conn) == ()


def test_the_third_loss_ends_the_item_as_worker_lost(world: World, tenant: uuid.UUID) -> None:
    job = world.job(tenant, 2)
    for losses in (1, 2, 3):
        dispatched(world)
        assert world.claim(job, [0])
        (lost,) = expire(world)
        assert lost.losses == losses
    row = world.item(job, 0)
    assert (row.state, row.error_code) == ("failed", "worker_lost")
    assert world.claim(job, [0]) == ()
    (delta,) = world.rows("SELECT failed, errors FROM job_deltas")
    assert tuple(delta) == (1, {"worker_lost": 1})


def test_losses_add_up_over_both_stages_and_a_release_is_none(world: World, tenant: uuid.UUID) -> None:
    job = world.job(tenant, 1)
    world.claim(job, [0])
    expire(world)
    dispatched(world)
    (item,) = world.claim(job, [0])
    world.complete((item, Released(reason="shutdown")))
    assert world.item(job, 0).losses == 1
    dispatched(world)
    world.complete(*((each, prepared()) for each in world.claim(job, [0])))
    dispatched(world)
    world.claim_ready(job, [0])
    (lost,) = expire(world)
    assert (lost.state, lost.losses) == ("ready", 2)


def test_a_lost_lease_of_a_cancelled_job_is_cancelled(world: World, tenant: uuid.UUID) -> None:
    job = world.job(tenant, 1)
    world.claim(job, [0])
    world.rows("UPDATE jobs SET cancel_requested_at = now() RETURNING 1")
    (lost,) = expire(world)
    assert lost.state == "cancelled"
    assert world.states(job) == {"cancelled": 1}


def test_a_row_that_somebody_holds_is_skipped(world: World, tenant: uuid.UUID) -> None:
    job = world.job(tenant, 2)
    world.claim(job, [0, 1])
    world.rows("UPDATE items SET lease_until = now() - interval '1 s' RETURNING 1")
    with world.database.begin() as holder:
        holder.exec_driver_sql("SELECT 1 FROM items WHERE seq = 0 FOR UPDATE")
        with world.database.begin() as conn:
            assert [entry.seq for entry in sweep.expire_items(conn)] == [1]


def test_plans_and_documents_lose_leases_too(world: World, tenant: uuid.UUID) -> None:
    job = world.submitted(tenant)
    for losses in (1, 2, 3):
        with world.database.begin() as conn:
            assert jobs.claim_plan(conn, job, worker="p", lease=LEASE) is not None
        world.age("jobs", "plan_lease_until", 61)
        with world.database.begin() as conn:
            assert sweep.expire_plans(conn) == 1
        (row,) = world.rows("SELECT plan_state, plan_losses, error_code FROM jobs")
        assert row.plan_losses == losses
    assert (row.plan_state, row.error_code) == ("failed", "worker_lost")


def paged(world: World, tenant: uuid.UUID, count: int = 1) -> uuid.UUID:
    media = (MediaRef(url="s3://b/x.pdf"),)
    return world.job(tenant, 0, planned=[PlannedDocument(name="x", media=media, items=NeedsPaging())] * count)


def test_a_document_whose_third_lease_is_lost_becomes_one_failed_item(world: World, tenant: uuid.UUID) -> None:
    job = paged(world, tenant, 2)
    for _ in range(3):
        world.rows("UPDATE documents SET enqueued_at = now() WHERE state = 'pending' RETURNING 1")
        (claimed,) = world.claim_documents(job, [0])
        world.age("documents", "lease_until", 61)
        with world.database.begin() as conn:
            assert sweep.expire_documents(conn) == 1
    with world.database.begin() as conn:
        assert not documents.complete_document(conn, claimed, pages=4)
    rows = world.rows("SELECT doc, state, error_code FROM items")
    assert [tuple(row) for row in rows] == [(0, "failed", "worker_lost")]
    assert world.rows("SELECT item_count FROM jobs")[0][0] == 1


def test_past_the_deadline_what_waits_fails_and_what_runs_may_finish(world: World, tenant: uuid.UUID) -> None:
    media = (MediaRef(url="s3://b/x"),)
    planned = [
        *(PlannedDocument(name=f"{n}", media=media) for n in range(4)),
        PlannedDocument(name="pdf", media=media, items=NeedsPaging()),
    ]
    job = world.job(tenant, 0, planned=planned, done=False)
    world.succeed(job, [0])
    world.complete(*((item, prepared()) for item in world.claim(job, [1])))
    (running,) = world.claim_ready(job, [1])
    world.claim(job, [2])
    world.rows("UPDATE jobs SET deadline_at = now() - interval '1 s' RETURNING 1")
    with world.database.begin() as conn:
        assert sweep.past_deadline(conn) == (job,)
        assert sweep.end_overdue(conn, job) == 3  # the plan, one document, one item
        assert sweep.end_overdue(conn, job) == 0
    codes = {row[0]: row[1] for row in world.rows("SELECT error_code, count(*) FROM items GROUP BY 1")}
    assert codes == {None: 3, "deadline_exceeded": 2}
    assert world.complete((running, Succeeded(result=result())))
    assert world.states(job) == {"succeeded": 2, "failed": 2, "preparing": 1}


def test_cancelling_ends_what_waits_in_batches(world: World, tenant: uuid.UUID) -> None:
    job = world.job(tenant, 30)
    world.complete(*((item, prepared()) for item in world.claim(job, range(5))))
    world.claim_ready(job, [0])
    world.rows("UPDATE items SET enqueued_at = now() WHERE seq IN (1, 10) RETURNING 1")
    world.rows("UPDATE jobs SET cancel_requested_at = now() RETURNING 1")
    ended = []
    for _ in range(4):
        with world.database.begin() as conn:
            assert sweep.cancelling(conn) == (job,)
            ended.append(sweep.cancel_waiting(conn, job, limit=10))
    assert ended == [15, 10, 4, 0]  # the limit holds for each sort of waiting row
    assert world.states(job) == {"inferring": 1, "cancelled": 29}


def test_documents_of_a_cancelled_job_wait_no_more(world: World, tenant: uuid.UUID) -> None:
    job = paged(world, tenant, 3)
    (claimed,) = world.claim_documents(job, [0])
    world.rows("UPDATE documents SET enqueued_at = now() WHERE doc = 1 RETURNING 1")
    world.rows("UPDATE jobs SET cancel_requested_at = now() RETURNING 1")
    with world.database.begin() as conn:
        assert sweep.cancel_waiting(conn, job) == 3
        assert progress.finished_jobs(conn) == (job,)
        assert progress.finalise(conn, job) == "cancelled"
    with world.database.begin() as conn:
        assert not documents.complete_document(conn, claimed, pages=1)


def test_published_and_unclaimed_rows_are_claimable_again_after_a_while(world: World, tenant: uuid.UUID) -> None:
    world.job(tenant, 3)
    paged(world, tenant)
    world.submitted(tenant)
    world.rows("UPDATE items SET enqueued_at = now() - seq * interval '1 minute' RETURNING 1")
    world.rows("UPDATE documents SET enqueued_at = now() - interval '2 min' WHERE state = 'pending' RETURNING 1")
    world.rows("UPDATE jobs SET plan_enqueued_at = now() - interval '2 min' WHERE plan_state = 'pending' RETURNING 1")
    with world.database.begin() as conn:
        assert dispatch.requeue_stale(conn, 60.0) == 4
        assert dispatch.requeue_stale(conn, 60.0) == 0
        assert dispatch.requeue_stale(conn, 0.0) == 1
