"""The five tasks. A message carries ids only; a task claims, calls a step, writes the outcome, and never raises.

An exception that left a task would make Celery walk the message from worker to worker, or leak a slot of a thread pool;
so the outermost wrapper here catches everything, logs it, and returns. What the item owes is settled by its lease.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import structlog
from celery import Celery

_log = structlog.get_logger(__name__)

PLAN = "batchsight.plan"
PAGINATE = "batchsight.paginate"
PREPARE = "batchsight.prepare"
INFER = "batchsight.infer"
EXPORT = "batchsight.export"


class CpuWork(Protocol):
    """What a cpu worker can do (`workers.cpu_runtime`)."""

    def plan(self, job_id: uuid.UUID) -> None:
        """List the job's source into documents."""

    def paginate(self, job_id: uuid.UUID, docs: Sequence[int]) -> None:
        """Turn documents into items, one a page."""

    def prepare(self, job_id: uuid.UUID, seqs: Sequence[int]) -> None:
        """Fetch, decode and cut items."""

    def export(self, export_id: uuid.UUID) -> None:
        """Go on with an export of results."""


class GpuWork(Protocol):
    """What an engine worker can do (`workers.gpu_runtime`)."""

    def infer(self, job_id: uuid.UUID, seq: int, *, solo: bool) -> None:
        """Answer one item."""


def register_cpu(app: Celery, work: Callable[[], CpuWork]) -> None:
    """Bind the cpu tasks; `work()` is asked at each call, for it is built in each forked child."""

    @app.task(name=PLAN)
    def plan(job_id: str) -> None:
        _guarded(PLAN, lambda: work().plan(uuid.UUID(job_id)))

    @app.task(name=PAGINATE)
    def paginate(job_id: str, docs: list[int]) -> None:
        _guarded(PAGINATE, lambda: work().paginate(uuid.UUID(job_id), docs))

    @app.task(name=PREPARE)
    def prepare(job_id: str, seqs: list[int], solo: bool = False) -> None:  # noqa: ARG001, FBT001, FBT002 - the message's shape; a forked child runs one task at a time, so every task is solo
        _guarded(PREPARE, lambda: work().prepare(uuid.UUID(job_id), seqs))

    @app.task(name=EXPORT)
    def export(export_id: str) -> None:
        _guarded(EXPORT, lambda: work().export(uuid.UUID(export_id)))


def register_gpu(app: Celery, work: Callable[[], GpuWork]) -> None:
    """Bind the engine task."""

    @app.task(name=INFER)
    def infer(job_id: str, seq: int, solo: bool = False) -> None:  # noqa: FBT001, FBT002 - the message's shape
        _guarded(INFER, lambda: work().infer(uuid.UUID(job_id), seq, solo=solo))


def answer(work: Callable[[], GpuWork], arguments: Sequence[Any]) -> None:
    """Do what the engine task does, with a message's arguments, outside of Celery."""
    job_id, seq, *more = arguments
    _guarded(INFER, lambda: work().infer(uuid.UUID(job_id), seq, solo=bool(more and more[0])))


def _guarded(name: str, call: Callable[[], None]) -> None:
    try:
        call()
    except BaseException as error:  # noqa: BLE001 - see the docstring: nothing may leave a task
        _log.exception("task_failed", task=name, error=repr(error))
