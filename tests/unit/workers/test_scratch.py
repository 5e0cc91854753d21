"""The gate before a claim: a worker with a full disk waits, then lets the message go."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import REGISTRY

from workers.scratch import ScratchGate, measure


def gate(answers: list[bool], waits: list[float]) -> ScratchGate:
    return ScratchGate(lambda: answers.pop(0), patience=3.0, interval=1.0, sleep=waits.append)


def test_room_lets_pass_at_once() -> None:
    waits: list[float] = []
    assert gate([True], waits).passes()
    assert waits == []


def test_a_full_disk_holds_a_message_until_there_is_room() -> None:
    waits: list[float] = []
    assert gate([False, False, True], waits).passes()
    assert waits == [1.0, 1.0]


def test_a_disk_that_stays_full_lets_the_message_go() -> None:
    waits: list[float] = []
    assert not gate([False] * 4, waits).passes()
    assert len(waits) == 3


def test_the_disk_is_measured(tmp_path: Path) -> None:
    measure(tmp_path / "scratch")
    total, free = (REGISTRY.get_sample_value("batchsight_scratch_bytes", {"of": of}) for of in ("total", "free"))
    assert total
    assert free
    assert 0 < free <= total
