"""One child of a cpu worker: it plans, paginates, prepares and exports, one task at a time.

plan(job)            claim → batches, each committed with its cursor, until the turn is over
paginate(job, docs)  room on the disk? → claim → lease → count pages → items
prepare(job, seqs)   room on the disk? → claim → leases → fetch, decode, cut, store → complete, some items at a time
export(export)       claim → lease → shards, each committed with its cursor → manifest
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache

import structlog
from sqlalchemy import Connection

from pipelines.control.exports.run import ExportTools, run_turn
from pipelines.jobs.errors import ServiceUnavailable, StoreUnavailable
from pipelines.jobs.models import JobSpec
from pipelines.jobs.outcomes import Cancelled, Outcome, Released, Retry
from pipelines.jobs.retry import after_failure
from pipelines.steps.abort import Abort, AbortReason
from pipelines.steps.complete import complete
from pipelines.steps.only_new import record_earlier
from pipelines.steps.paginate import Paged, PaginateTools, paginate
from pipelines.steps.plan import PlanTools, batches
from pipelines.steps.prepare import PrepareTools
from pipelines.steps.prepare_batch import prepare
from pipelines.store import documents, export_leases, items, jobs
from pipelines.store.session import Database
from workers.leases import Key, LeaseKeeper
from workers.scratch import ScratchGate

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class CpuRuntimeOptions:
    """Times in seconds. `plan_turn`: then a plan that is not done goes to the back of the queue.

    It fills a process that others need too, and Celery stops a task that runs for some minutes (`workers.app`).
    """

    worker: str
    lease_seconds: float
    heartbeat_seconds: float
    plan_turn: float = 60.0


class CpuRuntime:
    """What one forked child owns."""

    def __init__(
        self,
        *,
        database: Database,
        plan_tools: PlanTools,
        paginate_tools: PaginateTools,
        prepare_tools: PrepareTools,
        export_tools: ExportTools,
        scratch: ScratchGate,
        options: CpuRuntimeOptions,
        close_media: Callable[[], None],
    ) -> None:
        self._close_media = close_media
        self._database = database
        self._plan_tools = plan_tools
        self._paginate_tools = paginate_tools
        self._prepare_tools = prepare_tools
        self._export_tools = export_tools
        self._scratch = scratch
        self._options = options
        self.item_leases = LeaseKeeper(self._beat_items, interval=options.heartbeat_seconds)
        self.document_leases = LeaseKeeper(self._beat_documents, interval=options.heartbeat_seconds)
        self.export_leases = LeaseKeeper(self._beat_exports, interval=options.heartbeat_seconds)
        self._spec = lru_cache(maxsize=256)(self._load_spec)

    def plan(self, job_id: uuid.UUID) -> None:
        """List a job's source from its cursor on; each batch is committed with the cursor behind it."""
        with self._database.begin() as conn:
            lease = jobs.claim_plan(conn, job_id, worker=self._options.worker, lease=self._options.lease_seconds)
        if lease is None:
            return
        try:
            spec = self._spec(job_id)
            held = (lease.job_id, lease.attempt)
            if not record_earlier(self._database, spec, lambda conn: self._still_planning(conn, held)):
                return
            until = time.monotonic() + self._options.plan_turn
            for batch in batches(spec, lease.cursor, self._plan_tools):
                with self._database.begin() as conn:
                    renewed = jobs.append_plan(
                        conn, lease, documents=batch.documents, cursor=batch.cursor, done=batch.done
                    )
                if renewed is None:
                    return  # lost or cancelled; whoever has it now goes on from the last committed cursor
                lease = renewed
                if not batch.done and time.monotonic() >= until:
                    with self._database.begin() as conn:
                        jobs.release_plan(conn, lease)
                    return
        except StoreUnavailable:
            raise  # nothing can be recorded now; the lease runs out and the plan is resumed
        except BaseException as error:  # noqa: BLE001 - the boundary: recorded, whatever it is
            _log.warning("plan_failed", job_id=str(job_id), exc_info=error)
            outcome = after_failure(error, fails=lease.fails, uniform=self._prepare_tools.uniform)
            with self._database.begin() as conn:
                if isinstance(outcome, Retry):
                    jobs.retry_plan(conn, lease, outcome)
                else:
                    jobs.fail_plan(conn, lease, code=outcome.code, message=outcome.message)

    def _still_planning(self, conn: Connection, held: tuple[uuid.UUID, int]) -> bool:
        return bool(jobs.heartbeat_plans(conn, [held], self._options.lease_seconds))

    def paginate(self, job_id: uuid.UUID, docs: Sequence[int]) -> None:
        """Turn documents into items, one a page."""
        if not self._scratch.passes():
            return  # published again after a while
        with self._database.begin() as conn:
            claimed = documents.claim_documents(
                conn, job_id, docs, worker=self._options.worker, lease=self._options.lease_seconds
            )
        with ExitStack() as held:
            aborts = {
                document.doc: held.enter_context(self.document_leases.hold((job_id, document.doc, document.attempt)))
                for document in claimed
            }
            for document in claimed:
                self._paginate_one(document, aborts[document.doc])

    def _paginate_one(self, claimed: documents.ClaimedDocument, abort: Abort) -> None:
        if abort.reason is not None:
            with self._database.begin() as conn:
                documents.release_document(conn, claimed)
            return
        outcome = paginate(claimed.document, self._spec(claimed.job_id), self._paginate_tools, fails=claimed.fails)
        with self._database.begin() as conn:
            match outcome:
                case Paged(pages=pages, versions=versions):
                    documents.complete_document(conn, claimed, pages=pages, versions=versions)
                case Retry():
                    documents.retry_document(conn, claimed, outcome)
                case failed:
                    documents.fail_document(conn, claimed, code=failed.code, message=failed.message)

    def prepare(self, job_id: uuid.UUID, seqs: Sequence[int]) -> None:
        """Fetch, decode and cut items of one job; each is written as soon as it has its outcome."""
        if not self._scratch.passes():
            with self._database.begin() as conn:
                items.forget_hints(conn, [(job_id, seq) for seq in seqs])
            return
        with self._database.begin() as conn:
            claimed = items.claim_prepare(
                conn, job_id, seqs, worker=self._options.worker, lease=self._options.lease_seconds
            )
        if not claimed:
            return
        with ExitStack() as held:
            aborts = {
                item.seq: held.enter_context(self.item_leases.hold((item.job_id, item.seq, item.attempt)))
                for item in claimed
            }
            owed = {item.seq: item for item in claimed}
            try:
                spec = self._spec(job_id)
                for results in prepare(claimed, spec, self._prepare_tools, stopped=lambda i: _stopped(aborts[i.seq])):
                    complete(self._database, items, results)
                    for item, _ in results:
                        owed.pop(item.seq, None)
            except StoreUnavailable:
                raise  # nothing can be recorded now; the leases run out
            except BaseException as error:  # noqa: BLE001 - MemoryError and worse still owe an outcome
                _log.exception("prepare_raised", job_id=str(job_id), seqs=list(owed))
                uniform = self._prepare_tools.uniform
                complete(
                    self._database,
                    items,
                    [(item, after_failure(error, fails=item.fails, uniform=uniform)) for item in owed.values()],
                )

    def export(self, export_id: uuid.UUID) -> None:
        """Write shards of an export, and its manifest once all are there."""
        with self._database.begin() as conn:
            lease = export_leases.claim(conn, export_id, worker=self._options.worker, lease=self._options.lease_seconds)
        if lease is None:
            return
        with self.export_leases.hold((export_id, 0, lease.attempt)) as abort:
            run_turn(self._database, lease, self._export_tools, stopped=lambda: abort.reason is not None)

    def close(self) -> None:
        """Stop beating, end the decoders, close the pool."""
        self.export_leases.close()
        self.item_leases.close()
        self.document_leases.close()
        self._close_media()
        self._database.close()

    def _load_spec(self, job_id: uuid.UUID) -> JobSpec:
        with self._database.begin() as conn:
            spec = jobs.get_spec(conn, job_id)
        if spec is None:
            raise ServiceUnavailable("the job's row could not be read")
        return spec

    def _beat_items(self, held: Sequence[Key]) -> items.Beat:
        with self._database.begin() as conn:
            return items.heartbeat(conn, held, lease=self._options.lease_seconds)

    def _beat_documents(self, held: Sequence[Key]) -> items.Beat:
        with self._database.begin() as conn:
            return documents.heartbeat(conn, held, lease=self._options.lease_seconds)

    def _beat_exports(self, held: Sequence[Key]) -> items.Beat:
        with self._database.begin() as conn:
            mine = [(export_id, attempt) for export_id, _, attempt in held]
            kept = export_leases.heartbeat(conn, mine, lease=self._options.lease_seconds)
        return items.Beat(kept=frozenset((export_id, 0, attempt) for export_id, attempt in kept), cancelled=frozenset())


def _stopped(abort: Abort) -> Outcome | None:
    match abort.reason:
        case None:
            return None
        case AbortReason.CANCELLED:
            return Cancelled()
        case reason:
            return Released(reason=reason.value)
