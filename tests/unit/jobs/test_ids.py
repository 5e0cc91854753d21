from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from pipelines.jobs.ids import uuid7, uuid7_floor


def test_ids_grow_and_never_repeat_even_across_threads() -> None:
    with ThreadPoolExecutor(8) as threads:
        batches = list(threads.map(lambda _: [uuid7() for _ in range(2_000)], range(8)))
    assert all(batch == sorted(batch) for batch in batches)
    assert len({each for batch in batches for each in batch}) == 16_000


def test_an_id_is_of_version_7_and_carries_its_time() -> None:
    before = datetime.now(UTC) - timedelta(milliseconds=2)
    made = uuid7()
    assert made.version == 7
    assert uuid7_floor(before) < made < uuid7_floor(datetime.now(UTC) + timedelta(seconds=2))


def test_a_bound_without_a_time_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        uuid7_floor(datetime(2026, 1, 1))  # noqa: DTZ001 - the point of the test
