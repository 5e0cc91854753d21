"""Both kinds of workers in a thread over the deterministic engine: what Celery would call, called by hand."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import httpx2
from sqlalchemy import text

from pipelines.engine.fake import FakeEngine
from pipelines.engine.types import Engine
from pipelines.jobs.errors import StoreUnavailable
from pipelines.media.ssrf import guarded_client
from pipelines.settings import Settings
from pipelines.store import progress, sweep
from pipelines.store.session import Database
from workers.hints import CancelHints
from workers.wiring import cpu_runtime, gpu_runtime

_JOBS = text("SELECT id FROM jobs WHERE state IN ('queued', 'planning', 'running') ORDER BY priority, id")
_DOCUMENTS = text("SELECT doc FROM documents WHERE job_id = :job AND state = 'pending'")
_ITEMS = text("SELECT seq, state FROM items WHERE job_id = :job AND state IN ('pending', 'ready') ORDER BY seq")

E = TypeVar("E", bound=Engine)


@contextlib.contextmanager
def working(settings: Settings, database: Database, *, hold: threading.Event | None = None) -> Iterator[FakeEngine]:
    """Work on every job while the context is open; with `hold`, nothing is answered until it is set."""
    with working_with(FakeEngine(), settings, database, hold=hold) as engine:
        yield engine


@contextlib.contextmanager
def working_with(
    engine: E,
    settings: Settings,
    database: Database,
    *,
    hold: threading.Event | None = None,
    hints: bool = False,
    make_https: Callable[[], httpx2.Client] = guarded_client,
) -> Iterator[E]:
    """As `working`, over another engine, which is closed at the end; `hints`: cancelled jobs are heard of at once."""
    cpu = cpu_runtime(settings, make_https=make_https)
    gpu = gpu_runtime(settings, engine)
    listener = CancelHints(settings.redis_url, gpu.leases.check_now) if hints else None
    stop = threading.Event()

    def rounds() -> None:
        while not stop.wait(0.02):
            with database.begin() as conn:
                jobs = list(conn.execute(_JOBS).scalars())
            for job_id in jobs:
                cpu.plan(job_id)
                with database.begin() as conn:
                    docs = list(conn.execute(_DOCUMENTS, {"job": job_id}).scalars())
                cpu.paginate(job_id, docs)
                with database.begin() as conn:
                    found = conn.execute(_ITEMS, {"job": job_id}).all()
                cpu.prepare(job_id, [row.seq for row in found if row.state == "pending"])
                if hold is None or hold.is_set():
                    with database.begin() as conn:
                        found = conn.execute(_ITEMS, {"job": job_id}).all()
                    for row in found:
                        if row.state == "ready":
                            gpu.infer(job_id, row.seq, solo=False)
                # What the leader does: leftovers of a cancel, what is late, the snapshot, the end.
                with database.begin() as conn:
                    if job_id in sweep.cancelling(conn):
                        sweep.cancel_waiting(conn, job_id)
                    elif job_id in sweep.past_deadline(conn):
                        sweep.end_overdue(conn, job_id)
                with contextlib.suppress(StoreUnavailable), database.begin() as conn:
                    progress.fold(conn)  # somebody else's snapshot came first: the next round folds
                with database.begin() as conn:
                    progress.finalise(conn, job_id)

    thread = threading.Thread(target=rounds)
    thread.start()
    try:
        yield engine
    finally:
        stop.set()
        thread.join(30)
        if listener is not None:
            listener.close()
        cpu.close()
        gpu.close()
        engine.close()
