"""Exports: asked for, read, cancelled, forgotten. How one is worked on stands in `pipelines.store.export_leases`.

An export waits for its job's end in the state `waiting`; the statement that lets it go (`let_go`) is part of the
transaction that ends the job, so none is left behind. One that is asked for later is let go at once.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Row, text

from pipelines.jobs.exports import ExportOptions
from pipelines.jobs.ids import uuid7
from pipelines.jobs.states import ExportState
from pipelines.store.values import Wake, to_json, wake

# The job's row is locked against its end: either the export sees that it has ended, or the end sees the export.
_INSERT = text("""
WITH job AS (
    SELECT id, tenant_id, finished_at FROM jobs WHERE id = :job_id AND tenant_id = :tenant_id FOR KEY SHARE
)
INSERT INTO exports (id, tenant_id, job_id, url, options, state)
SELECT :id, tenant_id, id, :url, CAST(:options AS jsonb),
    CASE WHEN finished_at IS NULL THEN 'waiting' ELSE 'pending' END
FROM job
RETURNING *
""")
_LET_GO = text("""
UPDATE exports SET state = 'pending', available_at = now() WHERE job_id = :job_id AND state = 'waiting'
""")
_OF_JOB = """
SELECT * FROM exports WHERE job_id = :job_id AND tenant_id = :tenant_id
"""
_GET = text(_OF_JOB + "AND id = :id")
_LIST = text(
    _OF_JOB + "AND (CAST(:before AS uuid) IS NULL OR id < CAST(:before AS uuid)) ORDER BY id DESC LIMIT :limit"
)
_COUNT = text("SELECT count(*) FROM exports WHERE job_id = :job_id AND tenant_id = :tenant_id")
_CANCEL = text("""
UPDATE exports SET state = 'cancelled', finished_at = now(), lease_until = NULL, enqueued_at = NULL
WHERE id = :id AND job_id = :job_id AND tenant_id = :tenant_id AND state IN ('waiting', 'pending', 'running')
""")
_SHARDS = text("SELECT * FROM export_shards WHERE export_id = :id ORDER BY number, content DESC")

# Old ones, and those whose job has been forgotten with its month.
_OLD = text("""
SELECT e.* FROM exports AS e
WHERE e.finished_at < now() - make_interval(days => :days)
   OR NOT EXISTS (SELECT 1 FROM jobs AS j WHERE j.id = e.job_id)
ORDER BY e.id
LIMIT :limit
FOR UPDATE OF e SKIP LOCKED
""")
_FORGET = text("DELETE FROM exports WHERE id = ANY(CAST(:ids AS uuid[]))")


@dataclass(frozen=True, kw_only=True)
class Export:
    """An export as it is. `rows`: results written; `errors`: items written that have none; `bytes` at the target."""

    export_id: uuid.UUID
    tenant_id: uuid.UUID
    job_id: uuid.UUID
    options: ExportOptions
    state: ExportState
    shards: int
    rows: int
    errors: int
    bytes: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    error_code: str | None
    error_message: str | None


@dataclass(frozen=True, kw_only=True)
class Shard:
    """An object of an export, as its manifest names it. `content`: results, errors, or files (an index of them)."""

    number: int
    content: str
    name: str
    rows: int
    bytes: int
    sha256: str
    first_seq: int
    last_seq: int


def insert(conn: Connection, tenant_id: uuid.UUID, job_id: uuid.UUID, options: ExportOptions) -> Export | None:
    """Ask for an export; None where the tenant has no such job. It starts when the job ends, or at once."""
    values = {
        "id": uuid7(),
        "tenant_id": tenant_id,
        "job_id": job_id,
        "url": options.url,
        "options": to_json(options.to_json()),
    }
    row = conn.execute(_INSERT, values).one_or_none()
    if row is None:
        return None
    if row.state == ExportState.PENDING:
        wake(conn, Wake.EXPORT)
    return export_of(row)


def let_go(conn: Connection, job_id: uuid.UUID) -> int:
    """Start the exports that wait for this job; how many. Part of the transaction that ends it."""
    started = conn.execute(_LET_GO, {"job_id": job_id}).rowcount
    if started:
        wake(conn, Wake.EXPORT)
    return started


def get(conn: Connection, tenant_id: uuid.UUID, job_id: uuid.UUID, export_id: uuid.UUID) -> Export | None:
    """One export of the tenant's job."""
    row = conn.execute(_GET, {"id": export_id, "job_id": job_id, "tenant_id": tenant_id}).one_or_none()
    return None if row is None else export_of(row)


def listed(
    conn: Connection, tenant_id: uuid.UUID, job_id: uuid.UUID, *, before: uuid.UUID | None = None, limit: int
) -> tuple[Export, ...]:
    """The job's exports, newest first; `before` is the last id of the page before."""
    values = {"job_id": job_id, "tenant_id": tenant_id, "before": before, "limit": limit}
    return tuple(export_of(row) for row in conn.execute(_LIST, values))


def count(conn: Connection, tenant_id: uuid.UUID, job_id: uuid.UUID) -> int:
    """How many exports the job has."""
    return int(conn.execute(_COUNT, {"job_id": job_id, "tenant_id": tenant_id}).scalar_one())


def cancel(conn: Connection, tenant_id: uuid.UUID, job_id: uuid.UUID, export_id: uuid.UUID) -> bool:
    """End it now; whoever works on it finds its lease lost. False where it has ended, or is not there."""
    return conn.execute(_CANCEL, {"id": export_id, "job_id": job_id, "tenant_id": tenant_id}).rowcount == 1


def shards(conn: Connection, export_id: uuid.UUID) -> tuple[Shard, ...]:
    """The committed shards in order; in each number, results before errors."""
    return tuple(
        Shard(
            number=row.number,
            content=row.content,
            name=row.name,
            rows=row.rows,
            bytes=row.bytes,
            sha256=row.sha256,
            first_seq=row.first_seq,
            last_seq=row.last_seq,
        )
        for row in conn.execute(_SHARDS, {"id": export_id})
    )


def old(conn: Connection, *, days: int, limit: int) -> tuple[Export, ...]:
    """Exports that ended so long ago, or whose job is gone; locked, for the caller to forget."""
    return tuple(export_of(row) for row in conn.execute(_OLD, {"days": days, "limit": limit}))


def forget(conn: Connection, export_ids: Sequence[uuid.UUID]) -> None:
    """Delete the rows; the caller has deleted what the installation's own store held of them."""
    conn.execute(_FORGET, {"ids": list(export_ids)})


def export_of(row: Row[tuple[object, ...]]) -> Export:
    """A row as a value."""
    return Export(
        export_id=row.id,
        tenant_id=row.tenant_id,
        job_id=row.job_id,
        options=ExportOptions.from_json(row.url, row.options),
        state=ExportState(row.state),
        shards=row.shards,
        rows=row.rows,
        errors=row.errors,
        bytes=row.bytes,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        error_code=row.error_code,
        error_message=row.error_message,
    )
