"""The detector of jobs that do not move: what it reports, and what it knows to be only waiting."""

from __future__ import annotations

import uuid

from pipelines.jobs.models import JobPriority
from pipelines.store import stuck
from tests.integration.store.world import World

AFTER = 900.0


def stages(world: World) -> dict[uuid.UUID, str]:
    with world.database.begin() as conn:
        return {job.job_id: job.stage for job in stuck.stuck_jobs(conn, after=AFTER)}


def silence(world: World, *jobs: uuid.UUID) -> None:
    for job in jobs:
        world.age("job_progress", "updated_at", AFTER + 1, f"job_id = '{job}'")


def test_a_silent_job_is_reported_with_the_stage_that_it_waits_for(world: World) -> None:
    unplanned = world.submitted(world.tenant())
    pending, ready = world.job(world.tenant(), 2), world.job(world.tenant(), 2, ready=True)
    assert stages(world) == {}
    silence(world, unplanned, pending, ready)
    assert stages(world) == {unplanned: "plan", pending: "prepare", ready: "infer"}
    # Published to a queue that nobody reads is no progress either.
    world.rows("UPDATE items SET enqueued_at = now() RETURNING 1")
    assert stages(world) == {unplanned: "plan", pending: "prepare", ready: "infer"}


def test_what_a_worker_holds_or_a_retry_delays_is_not_stuck(world: World) -> None:
    held, delayed, cancelled = (world.job(world.tenant(), 1) for _ in range(3))
    world.claim(held, [0])
    world.rows(
        "UPDATE items SET available_at = now() + interval '1 min' WHERE job_id = %(job)s RETURNING 1", job=delayed
    )
    world.rows("UPDATE jobs SET cancel_requested_at = now() WHERE id = %(job)s RETURNING 1", job=cancelled)
    silence(world, held, delayed, cancelled)
    assert stages(world) == {}


def test_a_job_behind_one_that_moves_waits_its_turn(world: World) -> None:
    tenant = world.tenant()
    first, second = world.job(tenant, 1), world.job(tenant, 1)
    other = world.job(world.tenant(), 1)
    silence(world, second, other)
    assert stages(world) == {other: "prepare"}  # another tenant's turn does not depend on the first job
    silence(world, first)
    assert stages(world) == {first: "prepare", second: "prepare", other: "prepare"}
    urgent = world.job(world.tenant(), 1, priority=JobPriority.INTERACTIVE)
    assert stages(world) == {}
    silence(world, urgent)
    assert len(stages(world)) == 4
