"""COMPLETE: write outcomes, each fenced by its attempt, and settle what an ambiguous commit left open.

A commit may have happened although its answer never came. So a write that failed is tried again, and an entry that then
matches nothing is looked up: ended by my attempt is success, anything else is a rejected zombie, counted.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import structlog
from sqlalchemy import Connection

from pipelines.jobs.errors import StoreUnavailable
from pipelines.jobs.models import ClaimedItem
from pipelines.jobs.outcomes import Cancelled, Failed, Outcome, Prepared, Succeeded
from pipelines.jobs.states import ItemState

Key = tuple[uuid.UUID, int, int]
Entry = tuple[ClaimedItem, Outcome]

_log = structlog.get_logger(__name__)


class Transactions(Protocol):
    """Where transactions come from (`pipelines.store.session.Database`)."""

    def begin(self) -> AbstractContextManager[Connection]:
        """One transaction."""


class ItemWrites(Protocol):
    """The two statements that COMPLETE needs (`pipelines.store.items`)."""

    def complete(self, conn: Connection, entries: Sequence[Entry]) -> frozenset[Key]:
        """Write; the keys that were accepted."""

    def reread(self, conn: Connection, keys: Sequence[Key]) -> Mapping[Key, tuple[ItemState, int]]:
        """State and attempt now."""


@dataclass(frozen=True, kw_only=True)
class CompletionPolicy:
    """How long a write is tried while the database is away, and the pauses between tries, in seconds."""

    give_up_after: float = 600.0
    first_pause: float = 0.2
    longest_pause: float = 5.0


def complete(
    transactions: Transactions,
    writes: ItemWrites,
    entries: Sequence[Entry],
    *,
    policy: CompletionPolicy = CompletionPolicy(),
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> list[bool]:
    """Write `entries`; for each, True where it stands (also by an ambiguous commit before), False for a zombie.

    Raises `StoreUnavailable` when the database stays away longer than the policy allows: the leases then expire, and
    the work is done again by somebody else.
    """
    until = clock() + policy.give_up_after
    pause = policy.first_pause
    ambiguous = False
    while True:
        try:
            with transactions.begin() as conn:
                accepted = writes.complete(conn, entries)
                missing = [_key(item) for item, _ in entries if _key(item) not in accepted]
                settled = writes.reread(conn, missing) if missing and ambiguous else {}
            break
        except StoreUnavailable:
            ambiguous = True
            if clock() + pause > until:
                raise
            _log.warning("completion_waits_for_database", entries=len(entries), pause=pause)
            sleep(pause)
            pause = min(policy.longest_pause, pause * 2)
    standing = []
    for item, outcome in entries:
        key = _key(item)
        stands = key in accepted or _written_before(settled.get(key), item, outcome)
        if not stands:
            _log.warning(
                "zombie_write_rejected",
                job_id=str(item.job_id),
                seq=item.seq,
                attempt=item.attempt,
                outcome=type(outcome).__name__,
            )
        standing.append(stands)
    return standing


def _key(item: ClaimedItem) -> Key:
    return (item.job_id, item.seq, item.attempt)


def _written_before(found: tuple[ItemState, int] | None, item: ClaimedItem, outcome: Outcome) -> bool:
    """My attempt, in the state that my outcome leads to: the write that failed had been committed.

    The attempt alone would not do: a swept item goes back one step under the attempt that lost it. For outcomes that go
    back themselves the two cannot be told apart, and need not be.
    """
    if found is None or found[1] != item.attempt:
        return False
    match outcome:
        case Succeeded():
            return found[0] is ItemState.SUCCEEDED
        case Failed():
            return found[0] is ItemState.FAILED
        case Cancelled():
            return found[0] is ItemState.CANCELLED
        case Prepared():
            return found[0] is ItemState.READY
        case _:
            return not found[0].leased and not found[0].terminal
