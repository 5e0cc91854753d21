"""Planning under a lease, and documents that are paged."""

from __future__ import annotations

import threading
import uuid

import pytest

from pipelines.jobs.models import MediaRef
from pipelines.jobs.outcomes import Retry
from pipelines.store import documents, jobs, progress
from pipelines.store.jobs import FailedAtPlan, NeedsPaging, PlannedDocument, Single
from tests.integration.store.world import LEASE, World


@pytest.fixture
def tenant(world: World) -> uuid.UUID:
    return world.tenant()


def claim(world: World, job: uuid.UUID, worker: str = "p") -> jobs.PlanLease | None:
    with world.database.begin() as conn:
        return jobs.claim_plan(conn, job, worker=worker, lease=LEASE)


def append(
    world: World, lease: jobs.PlanLease, count: int, *, done: bool = False, cursor: int = 0
) -> jobs.PlanLease | None:
    planned = [PlannedDocument(name=f"n{n}", media=(MediaRef(url=f"s3://b/{n}"),)) for n in range(count)]
    with world.database.begin() as conn:
        return jobs.append_plan(conn, lease, documents=planned, cursor={"at": cursor}, done=done)


def test_a_plan_goes_on_at_its_cursor_with_the_next_numbers(world: World, tenant: uuid.UUID) -> None:
    job = world.submitted(tenant)
    lease = claim(world, job)
    assert lease is not None
    assert (lease.attempt, lease.cursor, lease.item_count) == (1, None, 0)
    assert claim(world, job) is None
    lease = append(world, lease, 3, cursor=1)
    assert lease is not None
    with world.database.begin() as conn:
        assert jobs.release_plan(conn, lease)
    lease = claim(world, job)
    assert lease is not None
    assert (lease.attempt, lease.cursor, lease.item_count, lease.document_count) == (2, {"at": 1}, 3, 3)
    assert append(world, lease, 2, done=True, cursor=2) is not None
    assert [row[0] for row in world.rows("SELECT seq FROM items ORDER BY seq")] == [0, 1, 2, 3, 4]
    assert claim(world, job) is None


def test_a_plan_that_lost_its_lease_writes_nothing(world: World, tenant: uuid.UUID) -> None:
    job = world.submitted(tenant)
    zombie = claim(world, job)
    assert zombie is not None
    world.rows("UPDATE jobs SET plan_state = 'pending', plan_lease_until = NULL RETURNING 1")
    heir = claim(world, job)
    assert heir is not None
    assert append(world, zombie, 5) is None
    with world.database.begin() as conn:
        assert not jobs.fail_plan(conn, zombie, code="x", message="x")
        assert not jobs.retry_plan(conn, zombie, Retry(code="x", message="x", delay=0))
        assert not jobs.release_plan(conn, zombie)
        assert jobs.heartbeat_plans(conn, [(job, zombie.attempt), (job, heir.attempt)], 60) == {(job, heir.attempt)}
    assert append(world, heir, 1, done=True) is not None
    assert world.states(job) == {"pending": 1}


def test_a_cancelled_job_is_planned_no_further(world: World, tenant: uuid.UUID) -> None:
    job = world.submitted(tenant)
    lease = claim(world, job)
    assert lease is not None
    world.rows("UPDATE jobs SET cancel_requested_at = now() RETURNING 1")
    assert append(world, lease, 1) is None
    with world.database.begin() as conn:
        assert jobs.heartbeat_plans(conn, [(job, lease.attempt)], 60) == frozenset()


def test_the_first_claim_moves_the_job_and_its_snapshot_on(world: World, tenant: uuid.UUID) -> None:
    job = world.submitted(tenant)
    with world.database.begin() as conn:
        before = jobs.get_job(conn, tenant, job)
    claim(world, job)
    with world.database.begin() as conn:
        after = jobs.get_job(conn, tenant, job)
    assert before is not None
    assert after is not None
    assert (before.state, after.state) == ("queued", "planning")
    assert after.version > before.version
    assert after.started_at is not None


def test_documents_become_items_failures_or_wait_for_paging(world: World, tenant: uuid.UUID) -> None:
    media = (MediaRef(url="s3://b/x", size=7),)
    job = world.job(
        tenant,
        0,
        planned=[
            PlannedDocument(name="a\x00b", media=media, overrides={"k": 1}, metadata={"m": 2}, items=Single()),
            PlannedDocument(name="pdf", media=media, items=NeedsPaging()),
            PlannedDocument(name="bad", media=(), items=FailedAtPlan(code="media_not_found", message="gone")),
            PlannedDocument(name="last", media=media),
        ],
    )
    rows = world.rows("SELECT seq, doc, state, error_code, page FROM items ORDER BY seq")
    assert [tuple(row) for row in rows] == [
        (0, 0, "pending", None, None),
        (1, 2, "failed", "media_not_found", None),
        (2, 3, "pending", None, None),
    ]
    (first, pdf, bad, _) = world.rows("SELECT * FROM documents WHERE job_id = %(job)s ORDER BY doc", job=job)
    assert (first.name, first.overrides, first.metadata, first.state) == ("a\ufffdb", {"k": 1}, {"m": 2}, "done")
    assert first.media == [{"url": "s3://b/x", "version": None, "size": 7}]
    assert (pdf.state, bad.state) == ("pending", "failed")
    assert [tuple(row) for row in world.rows("SELECT failed, errors FROM job_deltas")] == [(1, {"media_not_found": 1})]


def test_a_retry_of_the_plan_waits_and_counts(world: World, tenant: uuid.UUID) -> None:
    job = world.submitted(tenant)
    lease = claim(world, job)
    assert lease is not None
    with world.database.begin() as conn:
        assert jobs.retry_plan(conn, lease, Retry(code="source_unavailable", message="503", delay=20))
    assert claim(world, job) is None
    world.age("jobs", "plan_available_at", 21)
    lease = claim(world, job)
    assert lease is not None
    assert lease.fails == 1
    lease = append(world, lease, 1)
    assert lease is not None
    assert lease.fails == 0


def paged(world: World, tenant: uuid.UUID, count: int = 1) -> uuid.UUID:
    planned = [
        PlannedDocument(name=f"{n}.pdf", media=(MediaRef(url=f"s3://b/{n}.pdf"),), items=NeedsPaging())
        for n in range(count)
    ]
    return world.job(tenant, 0, planned=planned)


def test_a_document_becomes_one_item_a_page_exactly_once(world: World, tenant: uuid.UUID) -> None:
    job = paged(world, tenant)
    (claimed,) = world.claim_documents(job, [0, 0])
    assert world.claim_documents(job, [0]) == ()
    with world.database.begin() as conn:
        assert documents.complete_document(conn, claimed, pages=3, versions=("etag",))
    with world.database.begin() as conn:
        assert not documents.complete_document(conn, claimed, pages=3, versions=("etag",))
    rows = world.rows("SELECT seq, doc, page FROM items ORDER BY seq")
    assert [tuple(row) for row in rows] == [(0, 0, 0), (1, 0, 1), (2, 0, 2)]
    (row,) = world.rows("SELECT d.pages, d.media, j.item_count FROM documents d JOIN jobs j ON j.id = d.job_id")
    assert (row.pages, row.media[0]["version"], row.item_count) == (3, "etag", 3)


def test_a_document_that_turns_out_to_be_one_medium_is_one_item_without_a_page(world: World, tenant: uuid.UUID) -> None:
    job = paged(world, tenant)
    (claimed,) = world.claim_documents(job, [0])
    with world.database.begin() as conn:
        assert documents.complete_document(conn, claimed, pages=None)
    assert world.item(job, 0).page is None


def test_documents_paged_at_once_share_the_numbers_without_gaps(world: World, tenant: uuid.UUID) -> None:
    job = paged(world, tenant, 12)
    claimed = world.claim_documents(job, range(12))

    def work(mine: documents.ClaimedDocument) -> None:
        with world.database.begin() as conn:
            if mine.doc % 4 == 0:
                assert documents.fail_document(conn, mine, code="encrypted_document", message="password")
            else:
                assert documents.complete_document(conn, mine, pages=mine.doc)

    threads = [threading.Thread(target=work, args=(each,)) for each in claimed]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = sum(doc for doc in range(12) if doc % 4) + 3
    assert [row[0] for row in world.rows("SELECT seq FROM items ORDER BY seq")] == list(range(expected))
    assert world.rows("SELECT item_count FROM jobs")[0][0] == expected
    assert world.states(job)["failed"] == 3
    for doc in (d for d in range(12) if d % 4):
        pages = world.rows("SELECT page FROM items WHERE doc = %(doc)s ORDER BY seq", doc=doc)
        assert [row[0] for row in pages] == list(range(doc))


def test_a_document_given_back_is_claimed_anew_and_its_zombie_is_refused(world: World, tenant: uuid.UUID) -> None:
    job = paged(world, tenant)
    (first,) = world.claim_documents(job, [0])
    with world.database.begin() as conn:
        assert documents.retry_document(conn, first, Retry(code="x", message="x", delay=0))
    (second,) = world.claim_documents(job, [0])
    assert (second.attempt, second.fails) == (2, 1)
    with world.database.begin() as conn:
        assert not documents.complete_document(conn, first, pages=1)
        assert not documents.fail_document(conn, first, code="x", message="x")
        assert not documents.release_document(conn, first)
        beat = documents.heartbeat(conn, [(job, 0, 1), (job, 0, 2)], lease=60)
    assert beat.kept == {(job, 0, 2)}
    assert world.states(job) == {}


def test_a_document_of_a_cancelled_job_adds_nothing(world: World, tenant: uuid.UUID) -> None:
    job = paged(world, tenant)
    (claimed,) = world.claim_documents(job, [0])
    world.rows("UPDATE jobs SET cancel_requested_at = now() RETURNING 1")
    with world.database.begin() as conn:
        assert documents.heartbeat(conn, [(job, 0, 1)], lease=60).cancelled == {(job, 0, 1)}
        assert not documents.complete_document(conn, claimed, pages=9)
        assert not documents.fail_document(conn, claimed, code="x", message="x")
    assert world.states(job) == {}


def test_a_document_without_pages_cannot_be_completed(world: World, tenant: uuid.UUID) -> None:
    job = paged(world, tenant)
    (claimed,) = world.claim_documents(job, [0])
    with world.database.begin() as conn, pytest.raises(ValueError, match="without pages"):
        documents.complete_document(conn, claimed, pages=0)


def test_a_job_accepted_with_its_plan_is_what_planning_would_have_made_of_it(world: World, tenant: uuid.UUID) -> None:
    planned = [
        PlannedDocument(name="a", media=(MediaRef(url="s3://b/a"),), overrides={"x": 1}, metadata={"y": 2}),
        PlannedDocument(name="b", media=(MediaRef(url="s3://b/b"),), items=NeedsPaging()),
        PlannedDocument(name="c", media=(MediaRef(url="s3://b/c"),)),
    ]
    later, at_once = world.job(tenant, 0, planned=planned), uuid.uuid4()
    with world.database.begin() as conn:
        progress.fold(conn)
        new = jobs.NewJob(job_id=at_once, tenant_id=tenant, kind="ocr", parameters={}, source={"type": "none"})
        jobs.insert_planned(conn, new, planned)
    for statement in (
        "SELECT doc, tenant_id, name, media, overrides, metadata, state, pages FROM documents"
        " WHERE job_id = '{job}' ORDER BY doc",
        "SELECT seq, tenant_id, doc, page, state, attempt, losses, fails, enqueued_at FROM items"
        " WHERE job_id = '{job}' ORDER BY seq",
        "SELECT state, plan_state, item_count, document_count, started_at IS NULL, plan_lease_until FROM jobs"
        " WHERE id = '{job}'",
        "SELECT state, plan_state, item_count, counts, errors FROM job_progress WHERE job_id = '{job}'",
    ):
        assert world.rows(statement.format(job=at_once)) == world.rows(statement.format(job=later)), statement
    assert claim(world, at_once) is None


@pytest.mark.parametrize(
    "planned", [[], [PlannedDocument(name="a", media=(), items=FailedAtPlan(code="x", message="x"))]]
)
def test_a_job_is_not_accepted_with_a_plan_that_ends_something(
    world: World, tenant: uuid.UUID, planned: list[PlannedDocument]
) -> None:
    new = jobs.NewJob(job_id=uuid.uuid4(), tenant_id=tenant, kind="ocr", parameters={}, source={"type": "none"})
    with pytest.raises(ValueError, match="every document"), world.database.begin() as conn:
        jobs.insert_planned(conn, new, planned)
    assert world.rows("SELECT 1 FROM jobs") == []
