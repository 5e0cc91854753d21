"""One leader at a time, and when its losses count."""

from __future__ import annotations

import threading

import pytest

from pipelines.store import leader
from pipelines.store.leader import Epoch, LeaderLost, Terms
from tests.integration.store.world import World

TERMS = Terms(lease=5, grace=60, gap=15)


def acquire(world: World, holder: str = "a") -> Epoch | None:
    with world.database.begin() as conn:
        return leader.acquire(conn, holder, TERMS)


def led(world: World, holder: str = "a") -> Epoch:
    epoch = acquire(world, holder)
    assert epoch is not None
    return epoch


def counting(world: World, epoch: Epoch) -> bool:
    with world.database.begin() as conn:
        return leader.check(conn, epoch)


def wait_out_the_grace(world: World) -> None:
    world.age("leader", "losses_from", 61)


def test_only_one_of_many_leads(world: World) -> None:
    found: list[Epoch] = []

    def work(name: str) -> None:
        for _ in range(5):
            epoch = acquire(world, name)
            if epoch is not None:
                found.append(epoch)

    threads = [threading.Thread(target=work, args=(f"d{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [epoch.number for epoch in found] == [1]


def test_an_expired_lead_is_taken_and_the_old_leader_is_stopped_at_its_next_write(world: World) -> None:
    old = led(world)
    assert acquire(world, "b") is None
    world.age("leader", "lease_until", 6)
    new = led(world, "b")
    assert new.number == old.number + 1
    for refused in (leader.check, leader.renew):
        with pytest.raises(LeaderLost), world.database.begin() as conn:
            refused(conn, old)
    assert not counting(world, new)


def test_a_leader_renews_also_after_its_lease_ran_out_unclaimed(world: World) -> None:
    epoch = led(world)
    world.age("leader", "lease_until", 100)
    with world.database.begin() as conn:
        leader.renew(conn, epoch)
    assert acquire(world, "b") is None


def test_a_lead_given_back_is_free_at_once(world: World) -> None:
    epoch = led(world)
    with world.database.begin() as conn:
        leader.resign(conn, epoch)
    assert led(world, "b").number == epoch.number + 1


def test_a_restarted_process_of_the_same_name_is_another_leader(world: World) -> None:
    old = led(world, "same")
    world.age("leader", "lease_until", 6)
    led(world, "same")
    with pytest.raises(LeaderLost):
        counting(world, old)


def test_the_first_leader_waits_one_lease_before_it_counts_losses(world: World) -> None:
    epoch = led(world)
    assert not counting(world, epoch)
    wait_out_the_grace(world)
    assert counting(world, epoch)


def test_a_gap_in_contact_starts_the_wait_anew(world: World) -> None:
    epoch = led(world)
    wait_out_the_grace(world)
    world.age("leader", "contact_at", 20)
    assert not counting(world, epoch)  # even before the first renewal after the gap
    with world.database.begin() as conn:
        leader.renew(conn, epoch)
    assert not counting(world, epoch)
    wait_out_the_grace(world)
    assert counting(world, epoch)


def test_a_short_silence_starts_nothing_anew(world: World) -> None:
    epoch = led(world)
    wait_out_the_grace(world)
    world.age("leader", "contact_at", 10)
    with world.database.begin() as conn:
        leader.renew(conn, epoch)
    assert counting(world, epoch)


@pytest.mark.parametrize(("silence", "counts"), [(10, True), (20, False)])
def test_a_successor_inherits_unless_nobody_had_contact(world: World, *, silence: float, counts: bool) -> None:
    led(world)
    wait_out_the_grace(world)
    world.age("leader", "lease_until", 6)
    world.age("leader", "contact_at", silence)
    assert counting(world, led(world, "b")) is counts


def test_a_leader_frozen_inside_a_transaction_does_not_block_its_successor(world: World) -> None:
    led(world)
    with world.database.begin() as frozen:
        frozen.exec_driver_sql("UPDATE jobs SET priority = priority")
        with world.database.begin() as conn:
            conn.exec_driver_sql("UPDATE leader SET lease_until = now() - interval '1 s'")
        assert acquire(world, "b") is not None
