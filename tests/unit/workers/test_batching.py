from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from workers.batching import Batcher


def test_a_crowd_is_written_in_few_batches_and_each_gets_its_own_answer() -> None:
    sizes: list[int] = []
    release = threading.Event()

    def write(entries: Sequence[int]) -> list[int]:
        release.wait(5)
        sizes.append(len(entries))
        return [entry * 2 for entry in entries]

    batcher: Batcher[int, int] = Batcher(write, name="test", most=64)
    try:
        futures = [batcher.submit(number) for number in range(100)]
        release.set()
        assert [future.result(5) for future in futures] == [number * 2 for number in range(100)]
    finally:
        batcher.close()
    assert sum(sizes) == 100
    assert max(sizes) <= 64
    assert len(sizes) < 50


def test_an_exception_reaches_every_waiter_of_its_batch_and_the_next_batch_works() -> None:
    fail = threading.Event()
    fail.set()

    def write(entries: Sequence[int]) -> list[int]:
        if fail.is_set():
            raise MemoryError
        return list(entries)

    batcher: Batcher[int, int] = Batcher(write, name="test", pace=0.05)
    try:
        doomed = [batcher.submit(1), batcher.submit(2)]
        for future in doomed:
            with pytest.raises(MemoryError):
                future.result(5)
        fail.clear()
        assert batcher.submit(3).result(5) == 3
    finally:
        batcher.close()


def test_what_comes_soon_after_a_batch_is_one_batch() -> None:
    sizes: list[int] = []

    def write(entries: Sequence[int]) -> list[int]:
        sizes.append(len(entries))
        return list(entries)

    batcher: Batcher[int, int] = Batcher(write, name="test", pace=1.0)
    try:
        batcher.submit(1).result(5)  # alone on an idle worker: it waits for nobody
        for future in [batcher.submit(number) for number in range(2, 12)]:
            future.result(5)
    finally:
        batcher.close()
    assert sizes == [1, 10]


def test_a_full_batch_does_not_wait() -> None:
    batcher: Batcher[int, int] = Batcher(list, name="test", most=4, pace=3_600.0)
    try:
        batcher.submit(0).result(5)
        assert [f.result(5) for f in [batcher.submit(number) for number in range(4)]] == [0, 1, 2, 3]
    finally:
        batcher.close()


def test_closing_writes_what_was_handed_in() -> None:
    written: list[int] = []

    def write(entries: Sequence[int]) -> list[None]:
        written.extend(entries)
        return [None] * len(entries)

    batcher: Batcher[int, None] = Batcher(write, name="test", pace=0.5)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(batcher.submit, range(20)))
    batcher.close()
    assert sorted(written) == list(range(20))
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit(99)
