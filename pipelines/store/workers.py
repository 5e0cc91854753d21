"""Who is alive: a row a worker process, renewed while it runs. For people, metrics and the dispatcher's estimates;
nothing on the path depends on it (leases do that)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from pipelines.store.values import to_json

_ANNOUNCE = text("""
INSERT INTO workers (id, role, slots, engine, stats, draining)
VALUES (:id, :role, :slots, CAST(:engine AS jsonb), CAST(:stats AS jsonb), :draining)
ON CONFLICT (id) DO UPDATE SET role = excluded.role, slots = excluded.slots, engine = excluded.engine,
    stats = excluded.stats, draining = excluded.draining, seen_at = now()
""")
_FORGET = text("DELETE FROM workers WHERE id = :id")
_LIST = text("""
SELECT * FROM workers WHERE seen_at > now() - make_interval(secs => :within) ORDER BY role, id
""")
_SLOTS = text("""
SELECT coalesce(sum(slots), 0) FROM workers
WHERE role = :role AND NOT draining AND seen_at > now() - make_interval(secs => :within)
""")
_EXPIRE = text("DELETE FROM workers WHERE seen_at < now() - make_interval(secs => :older_than)")


@dataclass(frozen=True, kw_only=True)
class Worker:
    """A worker process. `engine`: model, weights, device; `stats`: numbers for people to look at.

    The times are PostgreSQL's, and None in a worker that announces itself.
    """

    worker_id: str
    role: str
    slots: int
    engine: Mapping[str, Any] = field(default_factory=dict)
    stats: Mapping[str, Any] = field(default_factory=dict)
    draining: bool = False
    started_at: datetime | None = None
    seen_at: datetime | None = None


def announce(conn: Connection, worker: Worker) -> None:
    """Record that the worker is alive."""
    values = {
        "id": worker.worker_id,
        "role": worker.role,
        "slots": worker.slots,
        "engine": to_json(worker.engine),
        "stats": to_json(worker.stats),
        "draining": worker.draining,
    }
    conn.execute(_ANNOUNCE, values)


def forget(conn: Connection, worker_id: str) -> None:
    """Record a clean end."""
    conn.execute(_FORGET, {"id": worker_id})


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


def slots(conn: Connection, role: str, *, within: float) -> int:
    """How much the role's workers, seen within so many seconds, can do at once."""
    return int(conn.execute(_SLOTS, {"role": role, "within": within}).scalar_one())


def expire(conn: Connection, *, older_than: float) -> int:
    """Delete rows of workers that were not seen for so many seconds; how many."""
    return conn.execute(_EXPIRE, {"older_than": older_than}).rowcount
