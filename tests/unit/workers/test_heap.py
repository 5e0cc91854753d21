"""What a start built is out of the collector's sight, and nothing else is."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from workers.heap import settle_heap


@pytest.fixture(autouse=True)
def thaw() -> Iterator[None]:
    """The test process goes on with a collector that sees everything."""
    yield
    gc.unfreeze()


def test_a_collection_walks_what_came_after_the_start_alone() -> None:
    built = [[number] for number in range(10_000)]
    settle_heap()
    assert gc.get_freeze_count() > len(built)
    later = [[number] for number in range(10)]
    seen = gc.get_objects()
    assert any(entry is later for entry in seen)
    assert not any(entry is built for entry in seen)


class Loop:
    """Garbage that the collector alone can find."""

    def __init__(self) -> None:
        self.itself = self


def test_garbage_of_the_start_is_collected_first() -> None:
    gc.disable()
    try:
        left = weakref.ref(Loop())
        assert left() is not None
        settle_heap()
        assert left() is None
    finally:
        gc.enable()
