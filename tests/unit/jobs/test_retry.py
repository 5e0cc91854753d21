from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.jobs.errors import (
    CorruptMedia,
    InternalError,
    PackDamaged,
    SourceUnavailable,
    StoreUnavailable,
    WorkerOutOfMemory,
)
from pipelines.jobs.outcomes import Failed, Repair, Retry
from pipelines.jobs.retry import DEFAULT_POLICY, after_failure


def highest(_low: float, high: float) -> float:
    return high


def test_a_permanent_failure_fails_at_once_with_its_code_and_sentence() -> None:
    outcome = after_failure(CorruptMedia("page 3 is damaged"), fails=0, uniform=highest)
    assert outcome == Failed(code="corrupt_media", message="page 3 is damaged")


@pytest.mark.parametrize("error", [SourceUnavailable("503"), StoreUnavailable("away"), InternalError("oops")])
def test_a_transient_failure_is_retried_five_times(error: Exception) -> None:
    outcomes = [after_failure(error, fails=fails, uniform=highest) for fails in range(6)]
    assert [type(outcome) for outcome in outcomes] == [Retry] * 5 + [Failed]


def test_out_of_memory_is_retried_once() -> None:
    assert isinstance(after_failure(WorkerOutOfMemory("x"), fails=0, uniform=highest), Retry)
    assert isinstance(after_failure(MemoryError(), fails=1, uniform=highest), Failed)


def test_a_damaged_pack_is_repaired_however_often_the_item_failed() -> None:
    assert isinstance(after_failure(PackDamaged("x"), fails=99, uniform=highest), Repair)


def test_the_text_of_a_foreign_exception_never_leaks() -> None:
    outcome = after_failure(ValueError("password=hunter2"), fails=99, uniform=highest)
    assert isinstance(outcome, Failed)
    assert outcome.code == "internal_error"
    assert "hunter2" not in outcome.message


@given(st.integers(0, 4), st.floats(0, 1))
def test_the_delay_is_full_jitter_under_a_doubling_ceiling(fails: int, part: float) -> None:
    outcome = after_failure(StoreUnavailable("x"), fails=fails, uniform=lambda low, high: low + part * (high - low))
    assert isinstance(outcome, Retry)
    ceiling = min(DEFAULT_POLICY.cap, DEFAULT_POLICY.base * 2**fails)
    assert 0 <= outcome.delay <= ceiling
    assert outcome.delay == pytest.approx(part * ceiling)
