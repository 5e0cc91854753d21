"""Cancelling and running again."""

from __future__ import annotations

import uuid

import pytest

from pipelines.control import cancel, redrive
from pipelines.control.sweep import Upkeep
from pipelines.jobs.errors import JobNotCancellable, NotFound, NothingToRedrive
from pipelines.jobs.ids import uuid7
from pipelines.jobs.models import Job, MediaRef
from pipelines.jobs.outcomes import Cancelled, Failed
from pipelines.jobs.states import JobState
from pipelines.store import documents, jobs, leader
from pipelines.store.jobs import FailedAtPlan, NeedsPaging, PlannedDocument
from pipelines.store.leader import Epoch, Terms
from tests.integration.store.world import World


@pytest.fixture
def tenant(world: World) -> uuid.UUID:
    return world.tenant()


@pytest.fixture
def epoch(world: World) -> Epoch:
    with world.database.begin() as conn:
        found = leader.acquire(conn, "test", Terms(lease=60, grace=60, gap=60))
    assert found is not None
    return found


def request(world: World, tenant: uuid.UUID, job: uuid.UUID) -> None:
    with world.database.begin() as conn:
        cancel.request(conn, tenant, job)


def seen(world: World, tenant: uuid.UUID, job: uuid.UUID) -> Job:
    with world.database.begin() as conn:
        found = jobs.get_job(conn, tenant, job)
    assert found is not None
    return found


def test_a_small_job_is_cancelled_when_the_answer_goes_out(world: World, tenant: uuid.UUID) -> None:
    job = world.job(tenant, 5)
    world.succeed(job, [0])
    before = seen(world, tenant, job)
    request(world, tenant, job)
    found = seen(world, tenant, job)
    assert found.state is JobState.CANCELLED
    assert found.version > before.version
    assert world.states(job) == {"succeeded": 1, "cancelled": 4}


def test_a_job_that_nobody_planned_yet_is_cancelled_too(world: World, tenant: uuid.UUID) -> None:
    job = world.submitted(tenant)
    request(world, tenant, job)
    assert seen(world, tenant, job).state is JobState.CANCELLED
    with world.database.begin() as conn:
        assert jobs.claim_plan(conn, job, worker="p", lease=60) is None


def test_a_large_job_is_cancelled_batch_by_batch_and_waits_for_what_runs(
    world: World, tenant: uuid.UUID, epoch: Epoch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancel, "BATCH", 10)
    job = world.job(tenant, 100)
    (running,) = world.claim(job, [99])
    request(world, tenant, job)
    found = seen(world, tenant, job)
    assert found.state is JobState.RUNNING or found.state is JobState.PLANNING
    assert found.cancel_requested_at is not None
    assert world.states(job) == {"pending": 89, "preparing": 1, "cancelled": 10}
    upkeep = Upkeep(world.database, redispatch_after=60, batch=20)
    assert upkeep.cancel(epoch) == 89
    assert upkeep.end_finished(epoch) == {}
    world.complete((running, Cancelled()))
    assert upkeep.end_finished(epoch, touched_only=True) == {job: JobState.CANCELLED}


def test_cancelling_twice_is_once_and_an_ended_job_cannot_be_cancelled(world: World, tenant: uuid.UUID) -> None:
    job = world.job(tenant, 2)
    world.claim(job, [0])
    request(world, tenant, job)
    version = seen(world, tenant, job).version
    request(world, tenant, job)
    assert seen(world, tenant, job).version == version
    ended = world.job(tenant, 1)
    request(world, tenant, ended)
    with pytest.raises(JobNotCancellable, match="cancelled"):
        request(world, tenant, ended)


def test_a_cancel_that_comes_when_everything_has_ended_changes_nothing(world: World, tenant: uuid.UUID) -> None:
    job = world.job(tenant, 1)
    world.succeed(job, [0])
    request(world, tenant, job)
    assert seen(world, tenant, job).state is JobState.SUCCEEDED


def test_another_tenants_job_is_not_found(world: World, tenant: uuid.UUID) -> None:
    job = world.job(tenant, 1)
    with pytest.raises(NotFound):
        request(world, world.tenant(), job)
    with pytest.raises(NotFound), world.database.begin() as conn:
        redrive.create(conn, world.tenant(), job)


def failed_job(world: World, tenant: uuid.UUID) -> uuid.UUID:
    """Items: a good one, two failed pages of one document, a failed single; a document that could not be paged."""
    media = (MediaRef(url="s3://b/x", version="v1"),)
    planned = [
        PlannedDocument(name="good", media=media),
        PlannedDocument(name="pdf", media=media, items=NeedsPaging(), overrides={"k": 1}),
        PlannedDocument(name="single", media=media, metadata={"m": 1}),
        PlannedDocument(name="locked", media=media, items=NeedsPaging()),
        PlannedDocument(name="nothing", media=(), items=FailedAtPlan(code="media_not_found", message="x")),
    ]
    job = world.job(tenant, 0, planned=planned)
    pdf, locked = world.claim_documents(job, [1, 3])
    with world.database.begin() as conn:
        documents.complete_document(conn, pdf, pages=4)
        documents.fail_document(conn, locked, code="encrypted_document", message="x")
    world.succeed(job, [0, 3, 5])
    claimed = world.claim(job, [1, 4, 6])
    assert len(claimed) == 3
    codes = {1: "corrupt_media", 4: "source_unavailable", 6: "source_unavailable"}
    world.complete(*((item, Failed(code=codes[item.seq], message="x")) for item in claimed))
    return job


def test_a_redrive_is_a_child_of_the_failed_items_with_their_pages(world: World, tenant: uuid.UUID) -> None:
    job = failed_job(world, tenant)
    before = world.rows("SELECT * FROM items WHERE job_id = %(j)s ORDER BY seq", j=job)
    with world.database.begin() as conn:
        child = redrive.create(conn, tenant, job)
    found = seen(world, tenant, child)
    assert (found.parent_id, found.item_count, found.kind) == (job, 3, "ocr")
    assert found.state is JobState.PLANNING  # one document is paged again
    rows = world.rows(
        "SELECT i.seq, i.doc, i.page, i.state, i.attempt, d.name, d.overrides, d.media FROM items i"
        " JOIN documents d USING (job_id, doc) WHERE i.job_id = %(j)s ORDER BY seq",
        j=child,
    )
    assert [(row.seq, row.name, row.page, row.state, row.attempt) for row in rows] == [
        (0, "single", None, "pending", 0),
        (1, "pdf", 1, "pending", 0),
        (2, "pdf", 3, "pending", 0),
    ]
    assert rows[1].overrides == {"k": 1}
    assert rows[1].media[0]["version"] == "v1"
    states = world.rows("SELECT doc, name, state FROM documents WHERE job_id = %(j)s ORDER BY doc", j=child)
    assert [tuple(row) for row in states] == [(0, "pdf", "done"), (1, "single", "done"), (2, "locked", "pending")]
    assert world.rows("SELECT * FROM items WHERE job_id = %(j)s ORDER BY seq", j=job) == before


def test_a_redrive_can_name_codes(world: World, tenant: uuid.UUID) -> None:
    job = failed_job(world, tenant)
    with world.database.begin() as conn:
        child = redrive.create(conn, tenant, job, codes=["corrupt_media"])
    assert seen(world, tenant, child).state is JobState.RUNNING
    world.succeed(child, [0])
    with pytest.raises(NothingToRedrive, match="out_of_luck"), world.database.begin() as conn:
        redrive.create(conn, tenant, job, codes=["out_of_luck"])
    with pytest.raises(NothingToRedrive), world.database.begin() as conn:
        redrive.create(conn, tenant, job, codes=["media_not_found"])  # it would fail in the same way for ever


def test_a_job_that_does_not_exist_is_not_found(world: World, tenant: uuid.UUID) -> None:
    with pytest.raises(NotFound):
        request(world, tenant, uuid7())
