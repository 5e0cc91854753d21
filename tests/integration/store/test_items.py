"""Claims, heartbeats and the fenced completion."""

from __future__ import annotations

import math
import threading
import uuid

import pytest

from pipelines.jobs.ids import uuid7
from pipelines.jobs.models import MediaRef
from pipelines.jobs.outcomes import Cancelled, Failed, Outcome, Released, Repair, Retry, Succeeded
from pipelines.jobs.states import ItemState
from pipelines.store import items, jobs, packs, sweep
from tests.integration.store.world import World, key_of, prepared, result

NEVER = uuid.UUID(int=0)


@pytest.fixture
def tenant(world: World) -> uuid.UUID:
    return world.tenant()


def test_an_item_goes_all_the_way_and_its_result_names_the_attempt(world: World, tenant: uuid.UUID) -> None:
    job = world.job(tenant, 1)
    (item,) = world.claim(job, [0])
    assert (item.attempt, item.losses, item.fails, item.page) == (1, 0, 0, None)
    assert item.document.media == (MediaRef(url="s3://bucket/0"),)
    assert world.complete((item, prepared("packs/x"))) == {key_of(item)}
    (item,) = world.claim_ready(job, [0])
    assert item.attempt == 2
    assert item.pack is not None
    assert item.pack.key == "packs/x"
    assert world.complete((item, Succeeded(result=result("the text")))) == {key_of(item)}
    (row,) = world.rows("SELECT r.text, r.attempt, i.attempt, i.state FROM results r JOIN items i USING (job_id, seq)")
    assert tuple(row) == ("the text", 2, 2, "succeeded")


def test_a_repeated_message_claims_nothing(world: World, tenant: uuid.UUID) -> None:
    job = world.job(tenant, 3)
    assert [item.seq for item in world.claim(job, [0, 1, 1, 0])] == [0, 1]
    assert world.claim(job, [0, 1]) == ()
    assert world.claim(job, [7]) == ()
    assert world.claim_ready(job, [2]) == ()
    assert world.claim(NEVER, [0]) == ()


def test_two_workers_never_claim_the_same_item(world: World, tenant: uuid.UUID) -> None:
    job = world.job(tenant, 200)
    claimed: list[int] = []

    def work(name: str) -> None:
        for start in range(0, 200, 10):
            claimed.extend(item.seq for item in world.claim(job, range(start, start + 10), worker=name))

    threads = [threading.Thread(target=work, args=(f"w{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == list(range(200))


def test_items_of_a_cancelled_or_overdue_job_are_not_claimed(world: World, tenant: uuid.UUID) -> None:
    job = world.job(tenant, 2)
    world.rows("UPDATE jobs SET cancel_requested_at = now() RETURNING 1")
    assert world.claim(job, [0, 1]) == ()
    world.rows("UPDATE jobs SET cancel_requested_at = NULL, deadline_at = now() - interval '1 s' RETURNING 1")
    assert world.claim(job, [0, 1]) == ()


def test_an_item_whose_retry_is_not_due_is_not_claimed(world: World, tenant: uuid.UUID) -> None:
    job = world.job(tenant, 1)
    (item,) = world.claim(job, [0])
    world.complete((item, Retry(code="source_unavailable", message="503", delay=30.0)))
    assert world.claim(job, [0]) == ()
    row = world.item(job, 0)
    assert (row.state, row.fails, row.error_code) == ("pending", 1, "source_unavailable")
    world.age("items", "available_at", 31)
    (item,) = world.claim(job, [0])
    assert item.fails == 1


def test_a_suspect_is_claimed_only_after_it_was_dispatched(world: World, tenant: uuid.UUID) -> None:
    job = world.job(tenant, 1)
    world.rows("UPDATE items SET losses = 1 RETURNING 1")
    assert world.claim(job, [0]) == ()
    world.rows("UPDATE items SET enqueued_at = now() RETURNING 1")
    (item,) = world.claim(job, [0])
    assert item.suspect


def test_a_heartbeat_keeps_what_is_ours_and_tells_of_cancelled_jobs(world: World, tenant: uuid.UUID) -> None:
    one, other = world.job(tenant, 2), world.job(tenant, 1)
    mine = [*world.claim(one, [0, 1]), *world.claim(other, [0])]
    stolen = (one, 1, 99)
    world.age("items", "lease_until", 30)
    world.rows("UPDATE jobs SET cancel_requested_at = now() WHERE id = %(job)s RETURNING 1", job=other)
    with world.database.begin() as conn:
        beat = items.heartbeat(conn, [key_of(mine[0]), stolen, key_of(mine[2]), (NEVER, 0, 1)], lease=60)
    assert beat.kept == {key_of(mine[0]), key_of(mine[2])}
    assert beat.cancelled == {key_of(mine[2])}
    left = {row[0]: row[1] for row in world.rows("SELECT seq, lease_until > now() + interval '50 s' FROM items")}
    assert left[0]
    assert not left[1]


def test_an_expired_lease_that_nobody_swept_is_still_its_holders(world: World, tenant: uuid.UUID) -> None:
    job = world.job(tenant, 1)
    (item,) = world.claim(job, [0])
    world.age("items", "lease_until", 120)
    with world.database.begin() as conn:
        assert items.heartbeat(conn, [key_of(item)], lease=60).kept == {key_of(item)}
    assert world.complete((item, prepared())) == {key_of(item)}


def test_a_zombie_changes_nothing(world: World, tenant: uuid.UUID) -> None:
    job = world.job(tenant, 1, ready=True)
    (zombie,) = world.claim_ready(job, [0])
    world.age("items", "lease_until", 120)
    with world.database.begin() as conn:
        (lost,) = sweep.expire_items(conn)
    assert (lost.state, lost.losses) == ("ready", 1)
    outcomes: list[Outcome] = [
        Succeeded(result=result("from the dead")),
        Failed(code="x", message="x"),
        Retry(code="x", message="x", delay=0),
        Repair(code="x", message="x"),
        Released(reason="x"),
        Cancelled(),
        prepared(),
    ]
    before = world.item(job, 0)
    for outcome in outcomes:
        assert world.complete((zombie, outcome)) == frozenset()
    world.rows("UPDATE items SET enqueued_at = now() RETURNING 1")
    (heir,) = world.claim_ready(job, [0])
    for outcome in outcomes:
        assert world.complete((zombie, outcome)) == frozenset()
    assert world.complete((heir, Succeeded(result=result("alive")))) == {key_of(heir)}
    for outcome in outcomes:
        assert world.complete((heir, outcome)) == frozenset()
    assert before.attempt < heir.attempt
    assert [row[0] for row in world.rows("SELECT text FROM results")] == ["alive"]


def test_outcomes_are_accepted_only_from_the_state_they_leave(world: World, tenant: uuid.UUID) -> None:
    job = world.job(tenant, 2)
    preparing, other = world.claim(job, [0, 1])
    assert world.complete((preparing, Succeeded(result=result()))) == frozenset()
    world.complete((other, prepared()))
    (inferring,) = world.claim_ready(job, [1])
    assert world.complete((inferring, prepared())) == frozenset()
    assert world.states(job) == {"preparing": 1, "inferring": 1}


def test_a_batch_of_every_outcome_is_written_at_once(world: World, tenant: uuid.UUID) -> None:
    job = world.job(tenant, 8, ready=True)
    claimed = world.claim_ready(job, range(8))
    outcomes: list[Outcome] = [
        Succeeded(result=result("a")),
        Succeeded(result=result("b")),
        Failed(code="prompt_too_long", message="shorten it"),
        Cancelled(),
        Released(reason="shutdown"),
        Repair(code="pack_damaged", message="gone"),
        Retry(code="engine_stopped", message="later", delay=5.0),
        Retry(code="engine_stopped", message="later", delay=5.0, counted=False),
    ]
    entries = list(zip(claimed, outcomes, strict=True))
    assert world.complete(*entries, entries[0]) == {key_of(item) for item in claimed}
    rows = {row.seq: row for row in world.rows("SELECT * FROM items")}
    states = [rows[seq].state for seq in range(8)]
    assert states == ["succeeded", "succeeded", "failed", "cancelled", "ready", "pending", "ready", "ready"]
    assert [rows[seq].fails for seq in range(8)] == [0, 0, 0, 0, 0, 0, 1, 0]
    assert (rows[2].error_code, rows[2].error_message) == ("prompt_too_long", "shorten it")
    assert rows[5].pack_key is None
    (delta,) = world.rows(
        "SELECT sum(succeeded), sum(failed), sum(cancelled), sum(prompt_tokens), sum(device_seconds) FROM job_deltas"
    )
    assert tuple(delta) == (2, 1, 1, 20, 1.0)


def test_a_repair_forgets_the_pack_unless_it_was_made_anew(world: World, tenant: uuid.UUID) -> None:
    job = world.job(tenant, 2)
    one, other = world.claim(job, [0, 1])
    entries = [(one, prepared("packs/damaged")), (other, prepared("packs/renewed"))]
    with world.database.begin() as conn:
        new = [packs.NewPack(pack=outcome.pack, media_hash="m") for _, outcome in entries]
        packs.record(conn, tenant_id=tenant, packs=new)
    world.complete(*entries)
    claimed = world.claim_ready(job, [0, 1])
    world.rows("UPDATE packs SET sha256 = 'new' WHERE key = 'packs/renewed' RETURNING 1")
    world.complete(*((item, Repair(code="pack_damaged", message="checksum")) for item in claimed))
    assert [row[0] for row in world.rows("SELECT key FROM packs")] == ["packs/renewed"]
    assert world.states(job) == {"pending": 2}


def test_out_of_memory_sends_an_item_to_the_suspect_lane(world: World, tenant: uuid.UUID) -> None:
    job = world.job(tenant, 2, ready=True)
    claimed = world.claim_ready(job, [0, 1])
    codes = ("engine_out_of_memory", "engine_stopped")
    world.complete(*((item, Retry(code=code, message="", delay=0)) for item, code in zip(claimed, codes, strict=True)))
    assert [row[0] for row in world.rows("SELECT losses FROM items ORDER BY seq")] == [1, 0]


def test_a_passed_stage_counts_failures_from_zero_again(world: World, tenant: uuid.UUID) -> None:
    job = world.job(tenant, 1)
    for _ in range(3):
        (item,) = world.claim(job, [0])
        world.complete((item, Retry(code="x", message="x", delay=0)))
    (item,) = world.claim(job, [0])
    assert item.fails == 3
    world.complete((item, prepared()))
    row = world.item(job, 0)
    assert (row.fails, row.error_code) == (0, None)


def test_prepare_pins_the_versions_that_the_plan_did_not_know(world: World, tenant: uuid.UUID) -> None:
    media = (MediaRef(url="s3://b/1"), MediaRef(url="s3://b/2", version="known"), MediaRef(url="s3://b/3"))
    job = world.job(tenant, 0, planned=[jobs.PlannedDocument(name="three", media=media)])
    (item,) = world.claim(job, [0])
    world.complete((item, prepared(versions=("v1", "other", None))))
    (item,) = world.claim_ready(job, [0])
    assert [medium.version for medium in item.document.media] == ["v1", "known", None]
    assert [medium.url for medium in item.document.media] == ["s3://b/1", "s3://b/2", "s3://b/3"]


def test_a_zombie_pins_nothing(world: World, tenant: uuid.UUID) -> None:
    job = world.job(tenant, 1)
    (zombie,) = world.claim(job, [0])
    world.age("items", "lease_until", 120)
    with world.database.begin() as conn:
        sweep.expire_items(conn)
    world.complete((zombie, prepared(versions=("stale",))))
    (row,) = world.rows("SELECT media FROM documents")
    assert row[0][0]["version"] is None


def test_text_that_the_database_cannot_hold_is_cleaned(world: World, tenant: uuid.UUID) -> None:
    job = world.job(tenant, 1, ready=True)
    (item,) = world.claim_ready(job, [0])
    odd = result("a\x00b\ud800c", output={"x\x00": math.nan, "y": ["\udfff", math.inf]}, flags=("f\x00",))
    assert world.complete((item, Succeeded(result=odd)))
    (row,) = world.rows("SELECT text, output, flags FROM results")
    assert tuple(row) == ("a\ufffdb\ufffdc", {"x\ufffd": None, "y": ["\ufffd", None]}, ["f\ufffd"])


def test_a_result_that_the_database_refuses_fails_alone(world: World, tenant: uuid.UUID) -> None:
    job = world.job(tenant, 3, ready=True)
    claimed = world.claim_ready(job, range(3))
    outcomes = [result("a"), result("b", prompt_tokens=2**40), result("c")]
    entries = [(item, Succeeded(result=each)) for item, each in zip(claimed, outcomes, strict=True)]
    assert world.complete(*entries) == {key_of(item) for item in claimed}
    rows = world.rows("SELECT state, error_code FROM items ORDER BY seq")
    assert [tuple(row) for row in rows] == [("succeeded", None), ("failed", "internal_error"), ("succeeded", None)]


def test_reread_tells_my_commit_from_anothers(world: World, tenant: uuid.UUID) -> None:
    job = world.job(tenant, 2, ready=True)
    mine, lost = world.claim_ready(job, [0, 1])
    world.complete((mine, Succeeded(result=result())))
    with world.database.begin() as conn:
        found = items.reread(conn, [key_of(mine), (job, 1, 1), (uuid7(), 0, 1)])
    assert found == {key_of(mine): (ItemState.SUCCEEDED, 2), (job, 1, 1): (ItemState.INFERRING, lost.attempt)}


def test_forgotten_hints_can_be_dispatched_again_at_once(world: World, tenant: uuid.UUID) -> None:
    job = world.job(tenant, 2)
    world.rows("UPDATE items SET enqueued_at = now() RETURNING 1")
    with world.database.begin() as conn:
        assert items.forget_hints(conn, [(job, 0), (job, 5)]) == 1
    assert [row[0] is None for row in world.rows("SELECT enqueued_at FROM items ORDER BY seq")] == [True, False]


def test_a_small_pack_comes_with_the_claim_and_only_as_it_was_recorded(world: World, tenant: uuid.UUID) -> None:
    job = world.job(tenant, 3)
    claimed = world.claim(job, [0, 1, 2])
    outcomes = [prepared(f"packs/{item.seq}") for item in claimed]
    with world.database.begin() as conn:
        data = (b"small", None, b"replaced")
        new = [
            packs.NewPack(pack=outcome.pack, media_hash="m", data=part)
            for outcome, part in zip(outcomes, data, strict=True)
        ]
        packs.record(conn, tenant_id=tenant, packs=new)
    world.complete(*zip(claimed, outcomes, strict=True))
    world.rows("UPDATE packs SET sha256 = 'new' WHERE key = 'packs/2' RETURNING 1")
    found = [item.pack.data for item in world.claim_ready(job, [0, 1, 2]) if item.pack is not None]
    assert found == [b"small", None, None]
