from __future__ import annotations

import uuid

from hypothesis import given
from hypothesis import strategies as st

from pipelines.control.pressure import Pace, Shelf, Suspects, Throttle, loads, suspects
from pipelines.store.census import Busy

JOB, TENANT, OTHER = uuid.UUID(int=1), uuid.UUID(int=2), uuid.UUID(int=3)


def busy(state: str, entries: int, **fields: object) -> Busy:
    values: dict[str, object] = {
        "job_id": JOB,
        "tenant_id": TENANT,
        "interactive": False,
        "cancelling": False,
        "state": state,
        "enqueued": False,
        "losses": 0,
        "entries": entries,
        "bytes": 0,
    }
    return Busy(**{**values, **fields})  # type: ignore[arg-type]


def test_what_is_prepared_being_prepared_or_sent_counts_against_the_shelf() -> None:
    throttle = Throttle(Shelf(items=100, bytes=10**9))
    on_the_way = [
        busy("ready", 10),
        busy("ready", 5, enqueued=True),
        busy("preparing", 20),
        busy("pending", 30, enqueued=True),
        busy("inferring", 500),
        busy("pending", 7, losses=1),
        busy("ready", 1000, cancelling=True),
    ]
    assert throttle.allowance(on_the_way, pace=None) == 35


def test_a_full_shelf_is_refilled_only_when_half_of_it_is_gone() -> None:
    throttle = Throttle(Shelf(items=100, bytes=10**9))
    assert throttle.allowance([busy("ready", 99)], pace=None) == 1
    assert throttle.allowance([busy("ready", 100)], pace=None) == 0
    assert throttle.allowance([busy("ready", 51)], pace=None) == 0
    assert throttle.allowance([busy("ready", 50)], pace=None) == 50
    assert throttle.allowance([busy("ready", 80)], pace=None) == 20


def test_bytes_bound_the_shelf_too_and_packs_to_come_are_expected_to_be_like_those_there() -> None:
    throttle = Throttle(Shelf(items=1000, bytes=100))
    assert throttle.allowance([busy("ready", 4, bytes=40), busy("preparing", 3)], pace=None) == 3
    assert throttle.allowance([busy("ready", 10, bytes=100)], pace=None) == 0
    assert throttle.allowance([busy("ready", 6, bytes=60)], pace=None) == 0
    assert throttle.allowance([busy("ready", 5, bytes=50)], pace=None) == 5


def test_a_slow_engine_has_a_minute_of_work_before_it_and_never_too_little() -> None:
    shelf = Shelf(items=512, bytes=10**9, seconds=60, least=32)
    assert Throttle(shelf).allowance([], pace=1.0) == 60
    assert Throttle(shelf).allowance([], pace=0.001) == 32
    assert Throttle(shelf).allowance([], pace=1000.0) == 512
    assert Throttle(Shelf(items=8, bytes=10**9)).allowance([], pace=0.1) == 8


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 5000)), max_size=30))
def test_the_shelf_is_never_overfilled_and_a_gate_opens_only_at_half(history: list[tuple[int, int]]) -> None:
    throttle = Throttle(Shelf(items=100, bytes=2000))
    for entries, size in history:
        was_closed = throttle.closed
        allowed = throttle.allowance([busy("ready", entries, bytes=size if entries else 0)], pace=None)
        assert 0 <= allowed <= max(0, 100 - entries)
        if was_closed and allowed:
            assert entries <= 50
            assert size <= 1000 or not entries


def test_pace_is_what_ended_over_the_last_minute() -> None:
    pace = Pace(window=60)
    assert pace.rate(0.0) is None
    pace.note(30, 0.0)
    assert pace.rate(5.0) is None  # too little time to tell
    pace.note(30, 20.0)
    assert pace.rate(30.0) == 2.0
    pace.note(0, 70.0)
    assert pace.rate(70.0) == 30 / 50
    pace.note(0, 200.0)
    assert pace.rate(200.0) is None


def test_loads_count_by_tenant_what_is_past_waiting() -> None:
    groups = [
        busy("ready", 1),
        busy("ready", 2, enqueued=True),
        busy("inferring", 4, tenant_id=OTHER),
        busy("preparing", 8),
        busy("pending", 16, enqueued=True),
        busy("pending", 32, losses=1),
    ]
    assert loads(groups, engine=False) == {TENANT: 27, OTHER: 4}
    assert loads(groups, engine=True) == {TENANT: 2, OTHER: 4}


def test_suspects_are_counted_by_stage_and_losses() -> None:
    groups = [
        busy("pending", 1, losses=1),
        busy("pending", 2, losses=1, enqueued=True),
        busy("preparing", 4, losses=1),
        busy("preparing", 8, losses=2),
        busy("pending", 16, losses=2),
        busy("ready", 32, losses=1),
        busy("pending", 64, enqueued=True),
        busy("pending", 128, losses=1, cancelling=True),
    ]
    found = suspects(groups, waiting="pending", leased="preparing")
    assert found == Suspects(waiting_once=1, waiting_twice=16, running_once=6, running_twice=8)
