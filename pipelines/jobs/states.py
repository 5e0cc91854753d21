"""Every state, in one line each, and every arrow between them.

README draws the same tables; `tests/architecture` holds them together. The guards themselves stand in the SQL of
`pipelines.store`: a transition happens in an UPDATE whose WHERE names the state it leaves.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping


class ItemState(enum.StrEnum):
    """Where an item (a medium with its questions) is."""

    PENDING = "pending"
    PREPARING = "preparing"
    READY = "ready"
    INFERRING = "inferring"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """True where nothing changes any more."""
        return self in ITEM_TERMINAL

    @property
    def leased(self) -> bool:
        """True while a worker holds the item under a lease."""
        return self in (ItemState.PREPARING, ItemState.INFERRING)


class JobState(enum.StrEnum):
    """Where a job is; derived from its plan and its items by `roll_up`."""

    QUEUED = "queued"
    PLANNING = "planning"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    PARTIAL = "partial"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """True where nothing changes any more."""
        return self in JOB_TERMINAL


class PlanState(enum.StrEnum):
    """How far the listing of a job's source, or the paging of one document, is."""

    PENDING = "pending"
    LEASED = "leased"
    DONE = "done"
    FAILED = "failed"


class ExportState(enum.StrEnum):
    """How far the export of a job's results is."""

    WAITING = "waiting"
    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """True where nothing changes any more."""
        return not EXPORT_ARROWS[self]


ITEM_TERMINAL = frozenset({ItemState.SUCCEEDED, ItemState.FAILED, ItemState.CANCELLED})
JOB_TERMINAL = frozenset({JobState.SUCCEEDED, JobState.PARTIAL, JobState.FAILED, JobState.CANCELLED})

ITEM_MEANING: Mapping[ItemState, str] = {
    ItemState.PENDING: "planned; its medium waits to be fetched, decoded and cut",
    ItemState.PREPARING: "a cpu worker holds it under a lease",
    ItemState.READY: "its pixels lie in the blob store; it waits for an engine",
    ItemState.INFERRING: "an engine worker holds it under a lease",
    ItemState.SUCCEEDED: "it has exactly one result, made by the attempt it records",
    ItemState.FAILED: "it ended with a stable error code",
    ItemState.CANCELLED: "its job was cancelled before it ended",
}

JOB_MEANING: Mapping[JobState, str] = {
    JobState.QUEUED: "accepted and committed; nobody has looked at its source yet",
    JobState.PLANNING: "its source is being listed and its documents are being paged; items may already run",
    JobState.RUNNING: "every item is known; some have not ended",
    JobState.SUCCEEDED: "every item succeeded, or a schedule's run found nothing new",
    JobState.PARTIAL: "some items succeeded, some failed",
    JobState.FAILED: "no item succeeded, or its source could not be listed",
    JobState.CANCELLED: "it was cancelled before it ended; what had succeeded is kept",
}

EXPORT_MEANING: Mapping[ExportState, str] = {
    ExportState.WAITING: "its job has not ended",
    ExportState.PENDING: "its job has ended; a cpu worker takes it up, from the shard after the last committed one",
    ExportState.RUNNING: "a cpu worker writes it under a lease",
    ExportState.SUCCEEDED: "every shard lies at the target, and the manifest that names them",
    ExportState.FAILED: "it ended with a stable error code, without a manifest",
    ExportState.CANCELLED: "it was cancelled before it ended",
}

ITEM_ARROWS: Mapping[ItemState, frozenset[ItemState]] = {
    ItemState.PENDING: frozenset(
        {ItemState.PREPARING, ItemState.FAILED, ItemState.CANCELLED}  # failed: the deadline passed
    ),
    ItemState.PREPARING: frozenset(
        {
            ItemState.READY,
            ItemState.PENDING,
            ItemState.FAILED,
            ItemState.CANCELLED,
        }  # pending: retry, release, lost lease
    ),
    ItemState.READY: frozenset({ItemState.INFERRING, ItemState.FAILED, ItemState.CANCELLED}),
    ItemState.INFERRING: frozenset(
        # ready: retry, release, lost lease; pending: its tile pack was damaged
        {ItemState.SUCCEEDED, ItemState.READY, ItemState.PENDING, ItemState.FAILED, ItemState.CANCELLED}
    ),
    ItemState.SUCCEEDED: frozenset(),
    ItemState.FAILED: frozenset(),
    ItemState.CANCELLED: frozenset(),
}

JOB_ARROWS: Mapping[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.PLANNING, JobState.FAILED, JobState.CANCELLED}),
    JobState.PLANNING: frozenset(
        {JobState.RUNNING, JobState.SUCCEEDED, JobState.PARTIAL, JobState.FAILED, JobState.CANCELLED}
    ),
    JobState.RUNNING: frozenset({JobState.SUCCEEDED, JobState.PARTIAL, JobState.FAILED, JobState.CANCELLED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.PARTIAL: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}

EXPORT_ARROWS: Mapping[ExportState, frozenset[ExportState]] = {
    ExportState.WAITING: frozenset({ExportState.PENDING, ExportState.CANCELLED}),
    ExportState.PENDING: frozenset({ExportState.RUNNING, ExportState.CANCELLED}),
    ExportState.RUNNING: frozenset(
        # pending: its turn was over, retry, release, lost lease
        {ExportState.PENDING, ExportState.SUCCEEDED, ExportState.FAILED, ExportState.CANCELLED}
    ),
    ExportState.SUCCEEDED: frozenset(),
    ExportState.FAILED: frozenset(),
    ExportState.CANCELLED: frozenset(),
}


def roll_up(
    *,
    plan: PlanState,
    unplanned_documents: int,
    counts: Mapping[ItemState, int],
    cancel_requested: bool,
    may_be_empty: bool = False,
) -> JobState:
    """The state of a job from its plan and the counts of its items: the one rule, also written in SQL nowhere else.

    `may_be_empty`: finding nothing to do is no failure; so for a schedule's jobs, which look for what is new.
    """
    unfinished = sum(n for state, n in counts.items() if not state.terminal)
    succeeded = counts.get(ItemState.SUCCEEDED, 0)
    failed = counts.get(ItemState.FAILED, 0)
    cancelled = counts.get(ItemState.CANCELLED, 0)
    if cancel_requested and not unfinished:
        # A cancel that came when everything had already ended changes nothing.
        everything_ended = plan is PlanState.DONE and not unplanned_documents and not cancelled and succeeded + failed
        if not everything_ended:
            return JobState.CANCELLED
    if plan is PlanState.FAILED and not unfinished and not unplanned_documents:
        return JobState.PARTIAL if succeeded else JobState.FAILED
    if plan is PlanState.PENDING and not unfinished and not succeeded and not failed:
        return JobState.QUEUED
    if plan is not PlanState.DONE or unplanned_documents:
        return JobState.PLANNING
    if unfinished:
        return JobState.RUNNING
    if cancelled:
        return JobState.CANCELLED
    if failed:
        return JobState.PARTIAL if succeeded else JobState.FAILED
    return JobState.SUCCEEDED if succeeded or may_be_empty else JobState.FAILED
