"""Exports in the store: let go by the end of their job, picked fairly, fenced, swept."""

from __future__ import annotations

import threading
import uuid
from typing import Any

import pytest

from pipelines.control import cancel as cancelling
from pipelines.jobs.exports import ExportOptions
from pipelines.jobs.outcomes import Retry
from pipelines.jobs.states import EXPORT_ARROWS, ExportState
from pipelines.store import export_leases, exports, progress
from pipelines.store.export_leases import ExportLease
from pipelines.store.exports import Export, Shard
from tests.integration.store.world import World

SHARD = Shard(number=0, content="results", name="a", rows=2, bytes=10, sha256="f" * 64, first_seq=0, last_seq=1)


@pytest.fixture
def tenant(world: World) -> uuid.UUID:
    return world.tenant()


def asked(world: World, tenant: uuid.UUID, job: uuid.UUID) -> Export:
    with world.database.begin() as conn:
        made = exports.insert(conn, tenant, job, ExportOptions())
    assert made is not None
    return made


def state(world: World, export: Export) -> str:
    (row,) = world.rows("SELECT state FROM exports WHERE id = %(id)s", id=export.export_id)
    return str(row.state)


def ended(world: World, tenant: uuid.UUID) -> uuid.UUID:
    job = world.job(tenant, 0)
    with world.database.begin() as conn:
        assert progress.finalise(conn, job) is not None
    return job


def claimed(world: World, export: Export) -> ExportLease | None:
    with world.database.begin() as conn:
        return export_leases.claim(conn, export.export_id, worker="w", lease=60)


def picked(world: World, *, limit: int = 10, most: int = 10) -> tuple[uuid.UUID, ...]:
    with world.database.begin() as conn:
        return export_leases.pick(conn, limit=limit, most=most)


def test_an_export_waits_for_its_job_and_is_let_go_by_the_transaction_that_ends_it(
    world: World, tenant: uuid.UUID
) -> None:
    job = world.job(tenant, 1)
    export = asked(world, tenant, job)
    assert state(world, export) == ExportState.WAITING
    assert picked(world) == ()
    world.succeed(job, [0])
    with world.database.begin() as conn:
        assert progress.finalise(conn, job) is not None
        conn.exec_driver_sql("ROLLBACK")
    assert state(world, export) == ExportState.WAITING  # the end did not happen, so neither did this
    with world.database.begin() as conn:
        assert progress.finalise(conn, job) is not None
    assert state(world, export) == ExportState.PENDING
    assert picked(world) == (export.export_id,)


def test_a_cancelled_job_lets_its_exports_go_too(world: World, tenant: uuid.UUID) -> None:
    job = world.job(tenant, 2)
    export = asked(world, tenant, job)
    with world.database.begin() as conn:
        cancelling.request(conn, tenant, job)
    assert state(world, export) == ExportState.PENDING


def test_an_export_of_an_ended_job_starts_at_once(world: World, tenant: uuid.UUID) -> None:
    assert asked(world, tenant, ended(world, tenant)).state is ExportState.PENDING


def test_asking_while_the_job_ends_is_never_left_behind(world: World, tenant: uuid.UUID) -> None:
    """One transaction ends the job while another asks: whichever commits first, the export goes."""
    for asks_first in (True, False):
        job = world.job(tenant, 0)
        made: list[Any] = []

        def ask(job: uuid.UUID = job, made: list[Any] = made) -> None:
            made.append(asked(world, tenant, job))

        with world.database.begin() as conn:
            if asks_first:
                made.append(exports.insert(conn, tenant, job, ExportOptions()))
                other = threading.Thread(target=lambda job=job: _end(world, job))
            else:
                assert progress.finalise(conn, job) is not None
                other = threading.Thread(target=ask)
            other.start()
            other.join(0.3)
            assert other.is_alive()  # it waits for this transaction
        other.join(10)
        assert state(world, made[0]) == ExportState.PENDING


def _end(world: World, job: uuid.UUID) -> None:
    with world.database.begin() as conn:
        progress.finalise(conn, job)


def test_exports_of_others_are_not_there(world: World, tenant: uuid.UUID) -> None:
    other, job = world.tenant(), ended(world, tenant)
    export = asked(world, tenant, job)
    with world.database.begin() as conn:
        assert exports.insert(conn, other, job, ExportOptions()) is None
        assert exports.get(conn, other, job, export.export_id) is None
        assert exports.listed(conn, other, job, limit=10) == ()
        assert not exports.cancel(conn, other, job, export.export_id)
    assert state(world, export) == ExportState.PENDING


def test_an_export_is_claimed_once_and_fenced_by_its_attempt(world: World, tenant: uuid.UUID) -> None:
    export = asked(world, tenant, ended(world, tenant))
    first = claimed(world, export)
    assert first is not None
    assert claimed(world, export) is None
    with world.database.begin() as conn:
        assert export_leases.release(conn, first)
    second = claimed(world, export)
    assert second is not None
    assert second.attempt == first.attempt + 1
    with world.database.begin() as conn:
        assert export_leases.advance(conn, first, shards=(SHARD,), cursor={"after": 1}) is None
        assert not export_leases.finish(conn, first)
        assert export_leases.advance(conn, second, shards=(SHARD,), cursor={"after": 1}) is not None
        assert exports.shards(conn, export.export_id) == (SHARD,)
        mine = (export.export_id, second.attempt)
        zombie = (export.export_id, first.attempt)
        assert export_leases.heartbeat(conn, [zombie, mine], lease=60) == {mine}
        assert export_leases.finish(conn, second)


def test_the_third_loss_at_one_shard_fails_and_a_shard_forgives(world: World, tenant: uuid.UUID) -> None:
    export = asked(world, tenant, ended(world, tenant))

    def lose() -> None:
        world.age("exports", "lease_until", 120, "state = 'running'")
        with world.database.begin() as conn:
            assert export_leases.expire(conn) == 1

    for _ in range(2):
        assert claimed(world, export) or (picked(world) and claimed(world, export))
        lose()
    assert claimed(world, export) is None  # an old message does not lead a suspect around the dispatcher
    assert picked(world)
    lease = claimed(world, export)
    assert lease is not None
    with world.database.begin() as conn:
        assert export_leases.advance(conn, lease, shards=(SHARD,), cursor={"after": 1}) is not None
    lose()
    assert state(world, export) == ExportState.PENDING
    for _ in range(2):
        assert picked(world)
        assert claimed(world, export) is not None
        lose()
    assert state(world, export) == ExportState.FAILED
    (row,) = world.rows("SELECT error_code, lease_until FROM exports")
    assert (row.error_code, row.lease_until) == ("worker_lost", None)


def test_few_run_at_once_and_tenants_take_turns(world: World, tenant: uuid.UUID) -> None:
    other = world.tenant()
    many = [asked(world, tenant, ended(world, tenant)) for _ in range(4)]
    one = asked(world, other, ended(world, other))
    assert set(picked(world, limit=10, most=2)) == {many[0].export_id, one.export_id}
    assert picked(world, limit=10, most=2) == ()
    lease = claimed(world, one)
    assert lease is not None
    assert picked(world, limit=10, most=2) == ()  # one is published, one runs
    with world.database.begin() as conn:
        assert export_leases.finish(conn, lease)
    assert picked(world, limit=10, most=2) == (many[1].export_id,)
    assert picked(world, limit=1, most=9) == (many[2].export_id,)


def test_a_lost_message_is_sent_again_and_a_retry_waits(world: World, tenant: uuid.UUID) -> None:
    export = asked(world, tenant, ended(world, tenant))
    assert picked(world) == (export.export_id,)
    assert picked(world) == ()
    with world.database.begin() as conn:
        assert export_leases.requeue_stale(conn, 60) == 0
    world.age("exports", "enqueued_at", 61)
    with world.database.begin() as conn:
        assert export_leases.requeue_stale(conn, 60) == 1
    assert picked(world) == (export.export_id,)
    lease = claimed(world, export)
    assert lease is not None
    with world.database.begin() as conn:
        assert export_leases.retry(conn, lease, Retry(code="x", message="y", delay=30))
        assert export_leases.fails_now(conn, lease) == 1
    assert picked(world) == ()
    world.age("exports", "available_at", 31)
    assert picked(world) == (export.export_id,)


def test_a_cancelled_export_is_nobodys_any_more(world: World, tenant: uuid.UUID) -> None:
    export = asked(world, tenant, ended(world, tenant))
    lease = claimed(world, export)
    assert lease is not None
    with world.database.begin() as conn:
        assert exports.cancel(conn, tenant, export.job_id, export.export_id)
        assert not exports.cancel(conn, tenant, export.job_id, export.export_id)
        assert export_leases.heartbeat(conn, [(export.export_id, lease.attempt)], lease=60) == frozenset()
        assert not export_leases.finish(conn, lease)
    assert state(world, export) == ExportState.CANCELLED


def test_every_terminal_state_has_no_way_out() -> None:
    assert {state for state in ExportState if state.terminal} == {
        state for state, following in EXPORT_ARROWS.items() if not following
    }
    assert {ExportState.SUCCEEDED, ExportState.FAILED, ExportState.CANCELLED} == {
        state for state in ExportState if state.terminal
    }
