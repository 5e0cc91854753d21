from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipelines.jobs.states import (
    ITEM_ARROWS,
    ITEM_MEANING,
    JOB_ARROWS,
    JOB_MEANING,
    JOB_TERMINAL,
    ItemState,
    JobState,
    PlanState,
    roll_up,
)

COUNTS = st.dictionaries(st.sampled_from(ItemState), st.integers(0, 3))


def test_every_state_has_a_meaning_and_arrows() -> None:
    assert set(ITEM_MEANING) == set(ITEM_ARROWS) == set(ItemState)
    assert set(JOB_MEANING) == set(JOB_ARROWS) == set(JobState)


def test_nothing_leaves_a_terminal_state() -> None:
    assert all(bool(ITEM_ARROWS[state]) is not state.terminal for state in ItemState)
    assert all(bool(JOB_ARROWS[state]) is not state.terminal for state in JobState)


@given(st.sampled_from(PlanState), st.integers(0, 2), COUNTS, st.booleans())
def test_a_job_ends_only_when_nothing_is_left_to_do(
    plan: PlanState, unplanned: int, counts: dict[ItemState, int], cancelled: bool
) -> None:
    state = roll_up(plan=plan, unplanned_documents=unplanned, counts=counts, cancel_requested=cancelled)
    unfinished = sum(n for item, n in counts.items() if not item.terminal)
    if state in JOB_TERMINAL:
        assert unfinished == 0
        assert plan in {PlanState.DONE, PlanState.FAILED} or cancelled
    if unfinished:
        assert state not in JOB_TERMINAL


@given(COUNTS)
def test_a_finished_plan_with_everything_ended_always_ends_the_job(counts: dict[ItemState, int]) -> None:
    ended = {state: n for state, n in counts.items() if state.terminal}
    state = roll_up(plan=PlanState.DONE, unplanned_documents=0, counts=ended, cancel_requested=False)
    assert state in JOB_TERMINAL


def roll(counts: dict[ItemState, int], *, cancel: bool = False, plan: PlanState = PlanState.DONE) -> JobState:
    return roll_up(plan=plan, unplanned_documents=0, counts=counts, cancel_requested=cancel)


def test_the_end_states() -> None:
    good, bad, gone = ItemState.SUCCEEDED, ItemState.FAILED, ItemState.CANCELLED
    assert roll({good: 3}) is JobState.SUCCEEDED
    assert roll({good: 3, bad: 1}) is JobState.PARTIAL
    assert roll({bad: 1}) is JobState.FAILED
    assert roll({}) is JobState.FAILED
    assert roll({good: 2, gone: 1}, cancel=True) is JobState.CANCELLED
    assert roll({}, cancel=True, plan=PlanState.PENDING) is JobState.CANCELLED
    assert roll({good: 1}, plan=PlanState.FAILED) is JobState.PARTIAL


def test_a_schedules_run_that_finds_nothing_new_has_succeeded() -> None:
    def scheduled(counts: dict[ItemState, int], plan: PlanState = PlanState.DONE) -> JobState:
        return roll_up(plan=plan, unplanned_documents=0, counts=counts, cancel_requested=False, may_be_empty=True)

    assert scheduled({}) is JobState.SUCCEEDED
    assert scheduled({}, PlanState.FAILED) is JobState.FAILED
    assert scheduled({ItemState.FAILED: 1}) is JobState.FAILED


def test_a_cancel_that_comes_too_late_changes_nothing() -> None:
    assert roll({ItemState.SUCCEEDED: 3}, cancel=True) is JobState.SUCCEEDED
