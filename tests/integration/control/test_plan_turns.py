"""A long plan, turn by turn: it goes to the back of the queue between batches, and is no suspect for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from pipelines.jobs.models import MediaRef
from pipelines.steps.plan import PlanBatch
from pipelines.store import jobs
from pipelines.store.plans import PlannedDocument
from tests.integration.control.cpu import unequipped
from tests.integration.store.world import World
from workers import cpu_runtime

BATCHES = 3


def listing(_spec: object, cursor: Mapping[str, Any] | None, _tools: object) -> Iterator[PlanBatch]:
    for number in range((cursor or {"next": 0})["next"], BATCHES):
        document = PlannedDocument(name=f"{number}.png", media=(MediaRef(url=f"s3://b/{number}.png"),))
        yield PlanBatch(documents=(document,), cursor={"next": number + 1}, done=number == BATCHES - 1)


def plan_of(world: World, job: object) -> Any:
    columns = "plan_state, plan_attempt, plan_losses, plan_fails, plan_enqueued_at, item_count"
    return world.rows(f"SELECT {columns} FROM jobs WHERE id = %(j)s", j=job)[0]


@pytest.fixture(autouse=True)
def _listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_runtime, "batches", listing)


def test_a_turn_that_is_over_gives_the_plan_back_at_its_cursor(world: World) -> None:
    job = world.submitted(world.tenant())
    runtime = unequipped(world, plan_turn=0.0)
    for turn in range(1, BATCHES):
        runtime.plan(job)
        assert tuple(plan_of(world, job)) == ("pending", turn, 0, 0, None, turn)
    runtime.plan(job)
    assert plan_of(world, job).plan_state == "done"
    assert plan_of(world, job).item_count == BATCHES
    names = world.rows("SELECT name FROM documents WHERE job_id = %(j)s ORDER BY doc", j=job)
    assert [row[0] for row in names] == [f"{number}.png" for number in range(BATCHES)]


def test_a_plan_within_its_turn_is_done_at_once(world: World) -> None:
    job = world.submitted(world.tenant())
    unequipped(world, plan_turn=3_600.0).plan(job)
    assert tuple(plan_of(world, job))[:2] == ("done", 1)


def test_a_plan_that_moves_on_is_no_suspect_any_more(world: World) -> None:
    job = world.submitted(world.tenant())
    world.rows("UPDATE jobs SET plan_losses = 2 WHERE id = %(j)s RETURNING 1", j=job)
    with world.database.begin() as conn:
        lease = jobs.claim_plan(conn, job, worker="w", lease=60)
        assert lease is not None
        assert lease.losses == 2
        renewed = jobs.append_plan(conn, lease, documents=(), cursor={"next": 1}, done=False)
    assert renewed is not None
    assert renewed.losses == 0
    assert plan_of(world, job).plan_losses == 0
