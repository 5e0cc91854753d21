"""What is picked next: priority, fair shares, suspects, and the plan of the query."""

from __future__ import annotations

import uuid
from collections import Counter
from datetime import UTC, datetime

from sqlalchemy import text

from pipelines.jobs.ids import uuid7_floor
from pipelines.jobs.models import JobPriority, MediaRef
from pipelines.store import census, dispatch, partitions
from pipelines.store.dispatch import Lane, Picked, Suspicion
from pipelines.store.jobs import NeedsPaging, PlannedDocument
from tests.integration.store.world import World

BULK, INTERACTIVE = Lane(interactive=False), Lane(interactive=True)


def prepares(world: World, limit: int = 100, lane: Lane = BULK, **options: object) -> list[Picked]:
    with world.database.begin() as conn:
        options.setdefault("loads", {})
        return list(dispatch.pick_prepares(conn, lane, limit=limit, **options))  # type: ignore[arg-type]


def numbers(picked: list[Picked], job: uuid.UUID) -> list[int]:
    return [row.number for row in picked if row.job_id == job]


def test_rows_are_picked_once_and_in_order(world: World) -> None:
    job = world.job(world.tenant(), 10)
    assert numbers(prepares(world, 4), job) == [0, 1, 2, 3]
    assert numbers(prepares(world, 4), job) == [4, 5, 6, 7]
    assert numbers(prepares(world, 4), job) == [8, 9]
    assert prepares(world, 4) == []


def test_an_older_job_of_a_tenant_goes_first_and_normal_before_bulk(world: World) -> None:
    tenant = world.tenant()
    bulk = world.job(tenant, 3, priority=JobPriority.BULK)
    first, second = world.job(tenant, 2), world.job(tenant, 2)
    order = [row.job_id for row in prepares(world, 6)]
    assert order == [first, first, second, second, bulk, bulk]


def test_interactive_jobs_have_a_lane_of_their_own(world: World) -> None:
    tenant = world.tenant()
    chat = world.job(tenant, 1, priority=JobPriority.INTERACTIVE)
    bulk = world.job(tenant, 1)
    assert [row.job_id for row in prepares(world, lane=BULK)] == [bulk]
    assert [row.job_id for row in prepares(world, lane=INTERACTIVE)] == [chat]


def test_tenants_with_work_share_alike_whatever_they_have(world: World) -> None:
    small, large = world.tenant(), world.tenant()
    for _ in range(3):
        world.job(large, 100)
    job = world.job(small, 50)
    picked = prepares(world, 40)
    assert len(numbers(picked, job)) == 20


def test_a_weight_is_a_larger_share(world: World) -> None:
    heavy, light = world.tenant(weight=3.0), world.tenant(weight=1.0)
    job, other = world.job(heavy, 100), world.job(light, 100)
    picked = prepares(world, 40)
    assert (len(numbers(picked, job)), len(numbers(picked, other))) == (30, 10)


def test_what_a_tenant_has_in_flight_counts_against_it(world: World) -> None:
    busy, idle = world.tenant(), world.tenant()
    job, other = world.job(busy, 20), world.job(idle, 20)
    picked = prepares(world, 10, loads={busy: 6})
    assert (len(numbers(picked, job)), len(numbers(picked, other))) == (2, 8)


def test_one_slot_at_a_time_does_not_starve_a_tenant(world: World) -> None:
    one, other = world.job(world.tenant(), 200), world.job(world.tenant(), 200)
    served = Counter(prepares(world, 1)[0].job_id for _ in range(60))
    assert min(served[one], served[other]) > 10  # drawn by lot: this fails once in ten million runs


def test_rows_that_are_not_due_or_not_wanted_any_more_are_passed_over(world: World) -> None:
    tenant = world.tenant()
    job = world.job(tenant, 3)
    cancelled, overdue = world.job(tenant, 2), world.job(tenant, 2)
    world.rows(
        "UPDATE items SET available_at = now() + interval '1 h' WHERE job_id = %(j)s AND seq = 0 RETURNING 1", j=job
    )
    world.rows("UPDATE jobs SET cancel_requested_at = now() WHERE id = %(j)s RETURNING 1", j=cancelled)
    world.rows("UPDATE jobs SET deadline_at = now() WHERE id = %(j)s RETURNING 1", j=overdue)
    picked = prepares(world)
    assert numbers(picked, job) == [1, 2]
    assert len(picked) == 2


def test_suspects_are_picked_apart(world: World) -> None:
    tenant = world.tenant()
    job = world.job(tenant, 6)
    world.rows("UPDATE items SET losses = seq WHERE seq IN (1, 2) RETURNING 1")
    assert numbers(prepares(world), job) == [0, 3, 4, 5]
    assert numbers(prepares(world, suspicion=Suspicion(least=1, most=1)), job) == [1]
    assert numbers(prepares(world, suspicion=Suspicion(least=2, most=99)), job) == [2]


def test_ready_items_and_documents_are_picked_alike(world: World) -> None:
    tenant = world.tenant()
    ready = world.job(tenant, 3, ready=True)
    media = (MediaRef(url="s3://b/x"),)
    paged = world.job(tenant, 0, planned=[PlannedDocument(name="x", media=media, items=NeedsPaging())] * 3)
    with world.database.begin() as conn:
        infers = dispatch.pick_infers(conn, BULK, limit=2, loads={})
        documents = dispatch.pick_documents(conn, BULK, limit=2, loads={})
        dispatch.unmark_items(conn, infers[:1])
        dispatch.unmark_documents(conn, documents[1:])
    assert [(row.job_id, row.number) for row in infers] == [(ready, 0), (ready, 1)]
    assert [(row.job_id, row.number) for row in documents] == [(paged, 0), (paged, 1)]
    with world.database.begin() as conn:
        assert [row.number for row in dispatch.pick_infers(conn, BULK, limit=9, loads={})] == [0, 2]
        assert [row.number for row in dispatch.pick_documents(conn, BULK, limit=9, loads={})] == [1, 2]


def test_plans_are_picked_by_priority_and_share_and_suspects_few_at_a_time(world: World) -> None:
    one, other = world.tenant(), world.tenant()
    first = [world.submitted(one) for _ in range(3)]
    chat = world.submitted(one, priority=JobPriority.INTERACTIVE)
    late = world.submitted(other)
    with world.database.begin() as conn:
        assert dispatch.pick_plans(conn, INTERACTIVE, limit=9, suspects=8) == (chat,)
        assert set(dispatch.pick_plans(conn, BULK, limit=2, suspects=8)) == {first[0], late}
        assert set(dispatch.pick_plans(conn, BULK, limit=9, suspects=8)) == set(first[1:])
    world.rows("UPDATE jobs SET plan_enqueued_at = NULL, plan_losses = 1 RETURNING 1")
    with world.database.begin() as conn:
        assert len(dispatch.pick_plans(conn, BULK, limit=9, suspects=2)) == 2
        assert dispatch.pick_plans(conn, BULK, limit=9, suspects=2) == ()


def test_a_row_that_somebody_holds_does_not_stop_the_pick(world: World) -> None:
    job = world.job(world.tenant(), 3)
    with world.database.begin() as holder:
        holder.exec_driver_sql("SELECT 1 FROM items WHERE seq = 1 FOR UPDATE")
        assert numbers(prepares(world), job) == [0, 2]


def test_the_census_counts_what_is_past_waiting(world: World) -> None:
    tenant = world.tenant()
    job = world.job(tenant, 10)
    world.claim(job, [0, 1])
    ready = world.job(tenant, 3, ready=True, priority=JobPriority.INTERACTIVE)
    world.claim_ready(ready, [0])
    world.rows("UPDATE items SET losses = 1 WHERE seq = 9 OR job_id = %(j)s AND seq = 1 RETURNING 1", j=ready)
    prepares(world, 3)
    with world.database.begin() as conn:
        found = {
            (busy.job_id == job, busy.interactive, busy.state, busy.enqueued, busy.losses): (busy.entries, busy.bytes)
            for busy in census.items(conn)
        }
    assert found == {
        (True, False, "preparing", False, 0): (2, 0),
        (True, False, "pending", True, 0): (3, 0),
        (True, False, "pending", False, 1): (1, 0),
        (False, True, "ready", False, 0): (1, 1000),
        (False, True, "ready", False, 1): (1, 1000),
        (False, True, "inferring", False, 0): (1, 1000),
    }


def plan_of(world: World, statement: object, values: dict[str, object]) -> str:
    with world.database.begin() as conn:
        sql = text(f"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) {statement}")
        return "\n".join(row[0] for row in conn.execute(sql, values))


def test_a_pick_reads_one_partition_by_its_partial_index_and_stops_at_the_limit(world: World) -> None:
    tenant = world.tenant()
    with world.database.begin() as conn:
        partitions.create_month(conn, datetime(2020, 1, 1, tzinfo=UTC))
    floor = uuid7_floor(datetime(2020, 1, 2, tzinfo=UTC)).int | (0x7 << 76) | (0b10 << 62)
    for n in range(5):
        world.job(tenant, 400, job_id=uuid.UUID(int=floor + n))
    values: dict[str, object] = {"first_priority": 1, "last_priority": 99, "limit": 5, "tenant_ids": [], "loads": []}
    plan = plan_of(world, dispatch._PREPARES[False].text, values)
    assert "Seq Scan on items" not in plan
    lines = [line.strip() for line in plan.splitlines()]
    touched = {
        line.split(" on ")[1].split(" ")[0]
        for line in lines
        if " on items_" in line and "Scan" in line and "(actual" in line and "rows=0" not in line
    }
    assert touched == {"items_202001"}
    inner = [line for line in lines if "on items_202001" in line and "Scan" in line]
    assert all(float(line.split("rows=")[1].split(" ")[0]) <= 5 for line in inner), inner
