"""One turn of an export: shards until the time is up, then, once all are there, the manifest.

claim (by the caller) → write, commit, write, commit … → manifest → finish

A turn is bounded, for it fills a process of a cpu worker: a long export goes to the back of the queue between turns.
Whatever fails becomes a retry or the export's end, by the rule that items have.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog
from sqlalchemy import Connection

from pipelines.blobs.base import BlobStat, BlobStore, Data
from pipelines.control import query
from pipelines.control.exports import manifest
from pipelines.control.exports.shards import Put, ShardTools, write_shards
from pipelines.control.exports.target import ExportRules, S3Target, folder_of, target_of
from pipelines.control.query import ENDED, ResultView
from pipelines.jobs.errors import NotFound, StoreUnavailable
from pipelines.jobs.models import Job
from pipelines.jobs.outcomes import Retry
from pipelines.jobs.retry import after_failure
from pipelines.store import export_leases, exports
from pipelines.store.export_leases import ExportLease
from pipelines.store.session import Database

_log = structlog.get_logger(__name__)

TURN = 15.0
"""Seconds after which an export that is not done goes to the back of the queue: others need its process too."""


@dataclass(frozen=True, kw_only=True)
class ExportTools:
    """What an export needs. `own` is the installation's store; `open_bucket` a store at a place outside of it."""

    own: BlobStore
    open_bucket: Callable[[S3Target], BlobStore]
    rules: ExportRules
    scratch: Path
    gpu_second_cost: float = 0.0
    turn: float = TURN
    uniform: Callable[[float, float], float] = random.uniform
    clock: Callable[[], float] = time.monotonic


def run_turn(database: Database, lease: ExportLease, tools: ExportTools, *, stopped: Callable[[], bool]) -> None:
    """Work on a leased export. Raises `StoreUnavailable` alone: the lease then runs out, and another goes on."""
    export = lease.export
    try:
        latest = _write(database, lease, tools, stopped)
    except StoreUnavailable:
        raise
    except BaseException as error:  # noqa: BLE001 - the boundary: recorded, whatever it is
        _log.warning("export_failed", export_id=str(export.export_id), job_id=str(export.job_id), exc_info=error)
        # Shards that were committed have set the count of failures to zero.
        with database.begin() as conn:
            fails = export_leases.fails_now(conn, lease)
            outcome = after_failure(error, fails=fails, uniform=tools.uniform)
            if isinstance(outcome, Retry):
                export_leases.retry(conn, lease, outcome)
            else:
                export_leases.fail(conn, lease, code=outcome.code, message=outcome.message)
        return
    if latest is not None:
        _log.info("export_ended", export_id=str(export.export_id), job_id=str(export.job_id), rows=latest.export.rows)


def _write(
    database: Database, lease: ExportLease, tools: ExportTools, stopped: Callable[[], bool]
) -> ExportLease | None:
    """The lease at its end, or None where this turn ended before the export did."""
    until = tools.clock() + tools.turn
    with database.begin() as conn:
        job = _job(conn, lease)
    put = _put(lease, tools)
    shard_tools = ShardTools(
        read=lambda after, limit: _read(database, lease, after, limit),
        put=put,
        scratch=tools.scratch,
        gpu_second_cost=tools.gpu_second_cost,
        stopped=stopped,
    )
    done = bool(lease.cursor.get("done"))
    for written in write_shards(lease.export.options, lease.cursor, shard_tools):
        with database.begin() as conn:
            renewed = export_leases.advance(conn, lease, shards=written.shards, cursor=written.cursor)
        if renewed is None:
            return None  # lost or cancelled; whoever has it now goes on from the last committed cursor
        lease, done = renewed, written.done
        if not done and tools.clock() >= until:
            break
    if not done:
        with database.begin() as conn:
            export_leases.release(conn, lease)
        return None
    with database.begin() as conn:
        committed = exports.shards(conn, lease.export.export_id)
    put(manifest.NAME, manifest.manifest_of(lease.export, job, committed))
    with database.begin() as conn:
        return lease if export_leases.finish(conn, lease) else None


def _job(conn: Connection, lease: ExportLease) -> Job:
    view = query.read_job(conn, lease.export.tenant_id, lease.export.job_id)
    if view is None:
        raise NotFound("the job is gone; its results were kept for as long as the installation keeps them")
    return view.job


def _read(database: Database, lease: ExportLease, after: int, limit: int) -> tuple[ResultView, ...]:
    export = lease.export
    with database.begin() as conn:
        return query.read_results(conn, export.tenant_id, export.job_id, states=ENDED, after=after, limit=limit)


def _put(lease: ExportLease, tools: ExportTools) -> Put:
    export = lease.export
    own = export.options.url is None
    folder = folder_of(export.tenant_id, export.job_id, export.export_id, own=own)
    if export.options.url is None:
        store = tools.own
    else:
        store = tools.open_bucket(target_of(export.options.url, tenant_buckets=lease.buckets, rules=tools.rules))

    def put(name: str, data: Data) -> BlobStat:
        return store.put(folder + name, data)

    return put
