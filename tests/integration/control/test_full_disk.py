"""A cpu worker whose scratch disk is full: it claims nothing, charges nobody, and leaves the items to others."""

from __future__ import annotations

from typing import Any

from tests.integration.store.world import World
from workers.cpu_runtime import CpuRuntime, CpuRuntimeOptions
from workers.scratch import ScratchGate


def worker(world: World, *, room: bool) -> CpuRuntime:
    unused: Any = None  # whoever claims nothing prepares nothing
    return CpuRuntime(
        database=world.database,
        plan_tools=unused,
        paginate_tools=unused,
        prepare_tools=unused,
        export_tools=unused,
        scratch=ScratchGate(lambda: room, patience=0.0, sleep=lambda _: None),
        options=CpuRuntimeOptions(worker="w", lease_seconds=60.0, heartbeat_seconds=15.0),
        close_media=lambda: None,
    )


def test_items_stay_claimable_and_may_be_dispatched_again_at_once(world: World) -> None:
    job = world.job(world.tenant(), 2)
    world.rows("UPDATE items SET enqueued_at = now() WHERE job_id = %(job)s RETURNING 1", job=job)
    worker(world, room=False).prepare(job, [0, 1])
    assert world.states(job) == {"pending": 2}
    assert [(item.attempt, item.fails, item.enqueued_at) for item in map(world.item, [job] * 2, range(2))] == [
        (0, 0, None),
        (0, 0, None),
    ]


def test_documents_are_not_claimed_either(world: World) -> None:
    job = world.submitted(world.tenant())
    worker(world, room=False).paginate(job, [0])
    assert world.rows("SELECT 1 FROM documents WHERE job_id = %(job)s AND attempt > 0", job=job) == []
