"""Who is alive: a row a worker process, renewed while it runs. For people, metrics and the dispatcher's estimates;
nothing on the path depends on it (leases do that)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from pipelines.store.values import to_json

_SEEN = text("""
INSERT INTO workers (id, role, slots, engine, stats, draining)
VALUES (:id, :role, :slots, CAST(:engine AS jsonb), CAST(:stats AS jsonb), :draining)
ON CONFLICT (id) DO UPDATE SET role = excluded.role, slots = excluded.slots, engine = excluded.engine,
    stats = excluded.stats, draining = excluded.draining, seen_at = now()
""")
_GONE = text("DELETE FROM workers WHERE id = :id")
_LIST = text("""
SELECT * FROM workers WHERE seen_at > now() - make_interval(secs => :within) ORDER BY role, id
""")
_FORGET = text("DELETE FROM workers WHERE seen_at < now() - make_interval(secs => :older_than)")


@dataclass(frozen=True, kw_only=True)
class WorkerReport:
    """What a process says of itself. `engine`: model, weights, device; `stats`: numbers for people to look at."""

    worker_id: str
    role: str
    slots: int
    engine: Mapping[str, Any] = field(default_factory=dict)
    stats: Mapping[str, Any] = field(default_factory=dict)
    draining: bool = False


@dataclass(frozen=True, kw_only=True)
class Worker(WorkerReport):
    """A report with its times."""

    started_at: datetime
    seen_at: datetime


def seen(conn: Connection, report: WorkerReport) -> None:
    """Record that the worker is alive."""
    values = {
        "id": report.worker_id,
        "role": report.role,
        "slots": report.slots,
        "engine": to_json(report.engine),
        "stats": to_json(report.stats),
        "draining": report.draining,
    }
    conn.execute(_SEEN, values)


def gone(conn: Connection, worker_id: str) -> None:
    """Record a clean end."""
    conn.execute(_GONE, {"id": worker_id})


def list_workers(conn: Connection, *, within: float) -> tuple[Worker, ...]:
    """Workers seen within so many seconds."""
    return tuple(
        Worker(
            worker_id=row.id,
            role=row.role,
            slots=row.slots,
            engine=row.engine,
            stats=row.stats,
            draining=row.draining,
            started_at=row.started_at,
            seen_at=row.seen_at,
        )
        for row in conn.execute(_LIST, {"within": within})
    )


def forget(conn: Connection, *, older_than: float) -> int:
    """Delete rows of workers that were not seen for so many seconds; how many."""
    return conn.execute(_FORGET, {"older_than": older_than}).rowcount
