"""Rows of old jobs: whether a month may go, and the rows beside its partitions."""

from __future__ import annotations

import uuid
from datetime import datetime

from sqlalchemy import Connection, text

_NOW = text("SELECT now()")
# A schedule's job counts until what it has done is written down (`store.schedule_objects`).
_UNFINISHED = text("""
SELECT EXISTS (
    SELECT 1 FROM jobs WHERE id >= :lower AND id < :upper AND state IN ('queued', 'planning', 'running')
) OR EXISTS (
    SELECT 1 FROM jobs WHERE schedule_id IS NOT NULL AND objects_recorded_at IS NULL AND id >= :lower AND id < :upper
)
""")
_FORGET = text("""
WITH old AS (
    SELECT id FROM jobs WHERE id >= :lower AND id < :upper AND finished_at IS NOT NULL ORDER BY id LIMIT :limit
),
progress AS (DELETE FROM job_progress USING old WHERE job_progress.job_id = old.id)
DELETE FROM jobs USING old WHERE jobs.id = old.id
""")


def now(conn: Connection) -> datetime:
    """PostgreSQL's clock."""
    at: datetime = conn.execute(_NOW).scalar_one()
    return at


def unfinished_jobs(conn: Connection, lower: uuid.UUID, upper: uuid.UUID) -> bool:
    """True where a job with an id from `lower` up to, not including, `upper` has not ended."""
    return bool(conn.execute(_UNFINISHED, {"lower": lower, "upper": upper}).scalar_one())


def forget_jobs(conn: Connection, lower: uuid.UUID, upper: uuid.UUID, *, limit: int = 1000) -> int:
    """Delete ended jobs of that range and their snapshots, at most `limit`; how many."""
    return conn.execute(_FORGET, {"lower": lower, "upper": upper, "limit": limit}).rowcount
