"""Upkeep of running jobs: lost leases, deadlines, cancelled jobs' leftovers, snapshots, and jobs that have ended.

Each method is one or more short transactions of the leader, epoch checked in each. All are repeatable: what one call
leaves undone, the next one does.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection
from dataclasses import dataclass

import structlog

from pipelines.jobs.errors import StoreUnavailable
from pipelines.jobs.states import JobState
from pipelines.store import dispatch, export_leases, leader, progress, sweep
from pipelines.store.leader import Epoch
from pipelines.store.progress import Folded
from pipelines.store.session import Database

_log = structlog.get_logger(__name__)

_BATCHES = 20
"""Batches of one job a call: the others wait no longer than that."""


@dataclass(frozen=True, kw_only=True)
class Swept:
    """What a sweep did: leases lost (of items, documents, plans, exports), rows past their deadline or sent again."""

    items: int
    documents: int
    plans: int
    exports: int
    overdue: int
    requeued: int


class Upkeep:
    """Not thread-safe: one thread of the leader calls it."""

    def __init__(self, database: Database, *, redispatch_after: float, batch: int = 5_000) -> None:
        self._database = database
        self._redispatch_after = redispatch_after
        self._batch = batch

    def sweep(self, epoch: Epoch) -> Swept:
        """Expired leases (unless a gap in contact says to wait), deadlines, lost messages, unfinished endings."""
        items = documents = plans = exports = 0
        with self._database.begin() as conn:
            if leader.check(conn, epoch):
                lost = sweep.expire_items(conn)
                items = len(lost)
                documents = sweep.expire_documents(conn)
                plans = sweep.expire_plans(conn)
                exports = export_leases.expire(conn)
                for lease in lost:
                    _log.warning(
                        "lease_lost",
                        job_id=str(lease.job_id),
                        seq=lease.seq,
                        worker=lease.worker,
                        losses=lease.losses,
                        state=lease.state,
                    )
        with self._database.begin() as conn:
            leader.check(conn, epoch)
            requeued = dispatch.requeue_stale(conn, self._redispatch_after)
        overdue = self._overdue(epoch)
        self.cancel(epoch)
        self.end_finished(epoch)
        return Swept(items=items, documents=documents, plans=plans, exports=exports, overdue=overdue, requeued=requeued)

    def cancel(self, epoch: Epoch) -> int:
        """Cancel what waits in cancelled jobs, some batches each; how many rows."""
        with self._database.begin() as conn:
            leader.check(conn, epoch)
            jobs = sweep.cancelling(conn)
        return sum(self._in_batches(epoch, job_id, cancel=True) for job_id in jobs)

    def end_finished(self, epoch: Epoch, *, touched_only: bool = False) -> dict[uuid.UUID, JobState]:
        """End jobs in which nothing is left to do; `touched_only`: look at those in which items ended just now."""
        with self._database.begin() as conn:
            leader.check(conn, epoch)
            touched = progress.touched_jobs(conn) if touched_only else None
            jobs = () if touched == () else progress.finished_jobs(conn, job_ids=touched)
        return self._finalise(epoch, jobs)

    def fold(self, epoch: Epoch) -> Folded:
        """Write the snapshots of jobs that changed, and end those that turn out to be over."""
        try:
            folded = self._fold(epoch)
        except StoreUnavailable:
            folded = self._fold(epoch)  # a snapshot changed meanwhile; a real outage raises again
        self._finalise(epoch, folded.finished)
        return folded

    def _fold(self, epoch: Epoch) -> Folded:
        with self._database.begin() as conn:
            leader.check(conn, epoch)
            return progress.fold(conn)

    def _overdue(self, epoch: Epoch) -> int:
        with self._database.begin() as conn:
            leader.check(conn, epoch)
            jobs = sweep.past_deadline(conn)
        return sum(self._in_batches(epoch, job_id, cancel=False) for job_id in jobs)

    def _in_batches(self, epoch: Epoch, job_id: uuid.UUID, *, cancel: bool) -> int:
        end = sweep.cancel_waiting if cancel else sweep.end_overdue
        total = 0
        for _ in range(_BATCHES):
            with self._database.begin() as conn:
                leader.check(conn, epoch)
                ended = end(conn, job_id, limit=self._batch)
            total += ended
            if not ended:
                break
        return total

    def _finalise(self, epoch: Epoch, jobs: Collection[uuid.UUID]) -> dict[uuid.UUID, JobState]:
        ended = {}
        for job_id in jobs:
            with self._database.begin() as conn:
                leader.check(conn, epoch)
                state = progress.finalise(conn, job_id)
            if state is not None:
                _log.info("job_ended", job_id=str(job_id), state=str(state))
                ended[job_id] = state
        return ended
