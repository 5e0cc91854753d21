"""A cpu worker whose scratch disk is full: it claims nothing, charges nobody, and leaves the items to others."""

from __future__ import annotations

from tests.integration.control.cpu import unequipped
from tests.integration.store.world import World


def test_items_stay_claimable_and_may_be_dispatched_again_at_once(world: World) -> None:
    job = world.job(world.tenant(), 2)
    world.rows("UPDATE items SET enqueued_at = now() WHERE job_id = %(job)s RETURNING 1", job=job)
    unequipped(world, room=False).prepare(job, [0, 1])
    assert world.states(job) == {"pending": 2}
    assert [(item.attempt, item.fails, item.enqueued_at) for item in map(world.item, [job] * 2, range(2))] == [
        (0, 0, None),
        (0, 0, None),
    ]


def test_documents_are_not_claimed_either(world: World) -> None:
    job = world.submitted(world.tenant())
    unequipped(world, room=False).paginate(job, [0])
    assert world.rows("SELECT 1 FROM documents WHERE job_id = %(job)s AND attempt > 0", job=job) == []
