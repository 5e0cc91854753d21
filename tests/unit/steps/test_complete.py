from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from sqlalchemy import Connection

from pipelines.jobs.errors import StoreUnavailable
from pipelines.jobs.models import ClaimedItem, Document
from pipelines.jobs.outcomes import Failed, Outcome
from pipelines.jobs.states import ItemState
from pipelines.steps.complete import Entry, Key, complete

JOB = uuid.UUID(int=1)


@dataclass
class Ledger:
    """A database of one table: rows with a state and an attempt; commits that may fail before or after."""

    rows: dict[int, tuple[ItemState, int]]
    failures: list[str] = field(default_factory=list)
    staged: dict[int, tuple[ItemState, int]] = field(default_factory=dict)

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        failure = self.failures.pop(0) if self.failures else ""
        if failure == "before":
            raise StoreUnavailable("away")
        self.staged = dict(self.rows)
        yield cast(Connection, None)
        self.rows = self.staged
        if failure == "after":
            raise StoreUnavailable("the answer to COMMIT never came")

    def complete(self, conn: Connection, entries: Sequence[Entry]) -> frozenset[Key]:
        accepted = set()
        for item, _ in entries:
            if self.staged.get(item.seq) == (ItemState.INFERRING, item.attempt):
                self.staged[item.seq] = (ItemState.FAILED, item.attempt)
                accepted.add((item.job_id, item.seq, item.attempt))
        return frozenset(accepted)

    def reread(self, conn: Connection, keys: Sequence[Key]) -> Mapping[Key, tuple[ItemState, int]]:
        return {key: self.staged[key[1]] for key in keys if key[1] in self.staged}


def entry(seq: int, attempt: int = 1) -> Entry:
    document = Document(job_id=JOB, doc=0, name="x", media=())
    item = ClaimedItem(job_id=JOB, seq=seq, attempt=attempt, losses=0, fails=0, page=None, document=document)
    outcome: Outcome = Failed(code="corrupt_media", message="no")
    return item, outcome


def run(ledger: Ledger, *entries: Entry, **more: Any) -> list[bool]:
    return complete(ledger, ledger, entries, sleep=lambda _: None, **more)


def test_each_entry_is_told_whether_it_stands() -> None:
    ledger = Ledger({1: (ItemState.INFERRING, 1), 2: (ItemState.INFERRING, 5)})
    assert run(ledger, entry(1), entry(2)) == [True, False]


def test_an_ambiguous_commit_that_happened_counts_as_written() -> None:
    ledger = Ledger({1: (ItemState.INFERRING, 1)}, failures=["after"])
    assert run(ledger, entry(1)) == [True]
    assert ledger.rows[1] == (ItemState.FAILED, 1)


def test_an_ambiguous_commit_that_did_not_happen_is_written_again() -> None:
    ledger = Ledger({1: (ItemState.INFERRING, 1)}, failures=["before", "before"])
    assert run(ledger, entry(1)) == [True]


def test_after_an_outage_another_attempts_work_is_not_mistaken_for_mine() -> None:
    ledger = Ledger({1: (ItemState.FAILED, 2)}, failures=["before"])
    assert run(ledger, entry(1, attempt=1)) == [False]


def test_an_item_that_was_swept_back_is_not_taken_for_written() -> None:
    ledger = Ledger({1: (ItemState.READY, 1)}, failures=["before"])
    assert run(ledger, entry(1)) == [False]


def test_an_item_that_is_leased_again_is_not_taken_for_written() -> None:
    ledger = Ledger({1: (ItemState.INFERRING, 2)}, failures=["before"])
    assert run(ledger, entry(1, attempt=1)) == [False]


def test_a_database_that_stays_away_is_given_up_on() -> None:
    ledger = Ledger({1: (ItemState.INFERRING, 1)}, failures=["before"] * 100)
    now = iter(range(0, 100_000, 100))
    with pytest.raises(StoreUnavailable):
        run(ledger, entry(1), clock=lambda: float(next(now)))
