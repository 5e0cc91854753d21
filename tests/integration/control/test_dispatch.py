"""Ticks over real PostgreSQL and Redis: windows, back-pressure, lanes, lost messages."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import redis

from pipelines.control.dispatch import STAGES, Dispatcher, DispatchOptions
from pipelines.control.messages import Depths, Message, QueueName
from pipelines.control.pressure import Shelf
from pipelines.jobs.errors import BrokerUnavailable
from pipelines.jobs.models import JobPriority, MediaRef
from pipelines.store import leader
from pipelines.store.jobs import NeedsPaging, PlannedDocument
from pipelines.store.leader import Epoch, LeaderLost, Terms
from pipelines.store.values import Wake
from tests.integration.store.world import World, prepared
from workers.publish import Publisher

SHELF = Shelf(items=1000, bytes=10**12)


@pytest.fixture
def broker(redis_url: str) -> Iterator[Publisher]:
    made = Publisher(redis_url)
    yield made
    made.close()


@pytest.fixture
def epoch(world: World) -> Epoch:
    with world.database.begin() as conn:
        found = leader.acquire(conn, "test", Terms(lease=60, grace=60, gap=60))
    assert found is not None
    return found


@pytest.fixture
def tenant(world: World) -> uuid.UUID:
    return world.tenant()


def dispatcher(
    world: World, broker: Publisher, *, window: int = 16, shelf: Shelf = SHELF, **options: int
) -> Dispatcher:
    return Dispatcher(world.database, broker, DispatchOptions(window=window, shelf=shelf, **options))


def taken(redis_url: str, queue: QueueName, most: int = 1000) -> list[list[Any]]:
    """Take messages from a queue as a worker would; their arguments behind the job's id."""
    found = []
    with redis.Redis.from_url(redis_url) as client:
        for _ in range(most):
            entry: Any = client.rpop(str(queue))
            if entry is None:
                break
            found.append(json.loads(base64.b64decode(json.loads(entry)["body"]))[0][1:])
    return found


def test_a_job_is_planned_prepared_and_answered_without_anybody_waiting(
    world: World, broker: Publisher, epoch: Epoch, redis_url: str, tenant: uuid.UUID
) -> None:
    ticking = dispatcher(world, broker)
    world.submitted(tenant)
    world.job(tenant, 0, planned=[PlannedDocument(name="x", media=(MediaRef(url="s3://b/x"),), items=NeedsPaging())])
    world.job(tenant, 3)
    world.job(tenant, 2, ready=True)
    done = ticking.tick(epoch)
    assert (done.published, done.backlog, done.held) == (7, frozenset(), frozenset())
    assert taken(redis_url, QueueName.CPU) == [[], [[0]], [[0], False], [[1], False], [[2], False]]
    assert taken(redis_url, QueueName.GPU) == [[0, False], [1, False]]
    assert ticking.tick(epoch).published == 0


def test_interactive_work_goes_to_queues_of_its_own(
    world: World, broker: Publisher, epoch: Epoch, redis_url: str, tenant: uuid.UUID
) -> None:
    world.job(tenant, 1, priority=JobPriority.INTERACTIVE)
    world.job(tenant, 1, ready=True, priority=JobPriority.INTERACTIVE)
    world.submitted(tenant, priority=JobPriority.INTERACTIVE)
    dispatcher(world, broker).tick(epoch)
    assert taken(redis_url, QueueName.CPU_INTERACTIVE) == [[], [[0], False]]
    assert taken(redis_url, QueueName.GPU_INTERACTIVE) == [[0, False]]


def test_no_queue_holds_more_than_its_window(
    world: World, broker: Publisher, epoch: Epoch, redis_url: str, tenant: uuid.UUID
) -> None:
    for _ in range(6):
        world.job(tenant, 40)
        world.job(tenant, 40, ready=True)
    ticking = dispatcher(world, broker, window=16)
    done = ticking.tick(epoch)
    assert {Wake.INFER, Wake.PREPARE} <= done.backlog
    assert max(broker.depths().waiting.values()) == 16
    assert ticking.tick(epoch).published == 0
    assert len(taken(redis_url, QueueName.GPU, most=1)) == 1
    assert ticking.tick(epoch).published == 0  # not for one free place
    assert len(taken(redis_url, QueueName.GPU, most=4)) == 4
    assert ticking.tick(epoch).published == 5
    assert max(broker.depths().waiting.values()) == 16
    # Everything that is marked was sent: nothing waits for a message that never was.
    marked = world.rows("SELECT count(*) FROM items WHERE enqueued_at IS NOT NULL AND state = 'pending'")[0][0]
    sent = taken(redis_url, QueueName.CPU)
    assert marked == sum(len(arguments[0]) for arguments in sent)


def test_a_backlog_of_bulk_work_does_not_close_the_interactive_queues(
    world: World, broker: Publisher, epoch: Epoch, redis_url: str, tenant: uuid.UUID
) -> None:
    world.job(tenant, 60)
    ticking = dispatcher(world, broker, window=4, group=2)
    while ticking.tick(epoch).published:
        pass
    world.job(tenant, 1, priority=JobPriority.INTERACTIVE)
    ticking.tick(epoch)
    assert taken(redis_url, QueueName.CPU_INTERACTIVE) == [[[0], False]]


def test_prepare_stops_while_the_shelf_is_full_and_goes_on_at_half(
    world: World, broker: Publisher, epoch: Epoch, redis_url: str, tenant: uuid.UUID
) -> None:
    job = world.job(tenant, 40)
    ticking = dispatcher(world, broker, window=64, shelf=Shelf(items=10, bytes=10**12, least=1))
    done = ticking.tick(epoch, {Wake.PREPARE})
    assert Wake.PREPARE in done.held
    first = [seq for arguments in taken(redis_url, QueueName.CPU) for seq in arguments[0]]
    assert first == list(range(10))
    world.complete(*((item, prepared()) for item in world.claim(job, first)))
    assert ticking.tick(epoch, {Wake.PREPARE}).published == 0
    world.succeed(job, range(4), ready=True)
    assert ticking.tick(epoch, {Wake.PREPARE}).published == 0  # six are left, more than half
    world.succeed(job, [4], ready=True)
    ticking.tick(epoch, {Wake.PREPARE})
    assert sorted(seq for arguments in taken(redis_url, QueueName.CPU) for seq in arguments[0]) == [10, 11, 12, 13, 14]


def test_suspects_run_few_at_a_time_and_the_twice_lost_alone(
    world: World, broker: Publisher, epoch: Epoch, redis_url: str, tenant: uuid.UUID
) -> None:
    job = world.job(tenant, 30, ready=True)
    chat = world.job(tenant, 5, ready=True, priority=JobPriority.INTERACTIVE)
    world.rows("UPDATE items SET losses = CASE WHEN seq < 3 THEN 2 ELSE 1 END WHERE seq < 25 RETURNING 1")
    ticking = dispatcher(world, broker, window=64, suspects=4)
    assert Wake.INFER in ticking.tick(epoch).held
    bulk, interactive = taken(redis_url, QueueName.GPU), taken(redis_url, QueueName.GPU_INTERACTIVE)
    losses = {(row.job_id, row.seq): row.losses for row in world.rows("SELECT job_id, seq, losses FROM items")}
    sent = [(losses[job, seq], solo) for seq, solo in bulk] + [(losses[chat, seq], solo) for seq, solo in interactive]
    assert sent.count((0, False)) == 5
    assert sent.count((1, False)) == 4
    assert sent.count((2, True)) == 1
    assert len(sent) == 10
    assert ticking.tick(epoch).published == 0
    once = next(seq for seq, _ in bulk + interactive if losses.get((job, seq)) == 1 or losses.get((chat, seq)) == 1)
    owner = job if world.item(job, once).enqueued_at is not None and losses[job, once] == 1 else chat
    world.succeed(owner, [once], ready=True)
    assert ticking.tick(epoch).published == 1


def test_a_broker_that_forgot_everything_gets_it_again_at_once(
    world: World, broker: Publisher, epoch: Epoch, redis_url: str, tenant: uuid.UUID
) -> None:
    world.job(tenant, 3)
    world.submitted(tenant)
    ticking = dispatcher(world, broker)
    assert ticking.tick(epoch).published == 4
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    again = ticking.tick(epoch, {Wake.INFER})
    assert (again.requeued, again.published) == (4, 4)
    assert ticking.tick(epoch).published == 0


class CutOff:
    """A broker whose connection breaks while it publishes."""

    def __init__(self, inner: Publisher) -> None:
        self._inner = inner
        self.broken = True

    def depths(self) -> Depths:
        return self._inner.depths()

    def mark_memory(self) -> None:
        self._inner.mark_memory()

    def publish(self, messages: Sequence[Message]) -> None:
        if self.broken:
            raise BrokerUnavailable("cut off")
        self._inner.publish(messages)


def test_what_could_not_be_published_is_published_at_the_next_tick(
    world: World, broker: Publisher, epoch: Epoch, tenant: uuid.UUID
) -> None:
    world.job(tenant, 3)
    broker.mark_memory()
    cut = CutOff(broker)
    ticking = Dispatcher(world.database, cut, DispatchOptions(window=16, shelf=SHELF))
    with pytest.raises(BrokerUnavailable):
        ticking.tick(epoch)
    cut.broken = False
    assert ticking.tick(epoch, {Wake.PLAN}).published == 3


def test_a_leader_that_was_replaced_picks_nothing(
    world: World, broker: Publisher, epoch: Epoch, tenant: uuid.UUID
) -> None:
    world.job(tenant, 3)
    ticking = dispatcher(world, broker)
    world.age("leader", "lease_until", 61)
    with world.database.begin() as conn:
        assert leader.acquire(conn, "other", epoch.terms) is not None
    with pytest.raises(LeaderLost):
        ticking.tick(epoch, STAGES)
    assert world.rows("SELECT count(*) FROM items WHERE enqueued_at IS NOT NULL")[0][0] == 0
    assert sum(broker.depths().waiting.values()) == 0


def test_a_tenant_with_a_hundred_times_the_work_gets_no_more_than_an_equal_share(
    world: World, broker: Publisher, epoch: Epoch, redis_url: str, tenant: uuid.UUID
) -> None:
    other = world.tenant()
    big = world.job(tenant, 2000, ready=True)
    small = world.job(other, 20, ready=True)
    ticking = dispatcher(world, broker, window=8)
    answered = {big: 0, small: 0}
    while answered[small] < 20:
        ticking.tick(epoch, {Wake.INFER})
        rows = world.rows("SELECT job_id, seq FROM items WHERE state = 'ready' AND enqueued_at IS NOT NULL")
        assert rows, "there is always something to do"
        for row in rows:
            world.succeed(row.job_id, [row.seq], ready=True)
            answered[row.job_id] += 1
        taken(redis_url, QueueName.GPU)
        # While both wait, neither is ahead of the other by more than what one window holds.
        if answered[small] < 20:
            assert abs(answered[big] - answered[small]) <= 8, answered
    assert answered[big] <= 20 + 8
