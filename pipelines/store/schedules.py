"""Schedules: made, read, changed, found when they are due, deleted in the end. Their runs stand in `schedule_runs`."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Row, TextClause, text
from sqlalchemy.exc import IntegrityError

from pipelines.jobs.errors import Conflict
from pipelines.jobs.models import JsonObject
from pipelines.jobs.schedules import CatchUp, Overlap, Schedule, ScheduleRules
from pipelines.store.values import to_json

_NOW = text("SELECT now()")

# The tenant's row is locked, so that two requests at once cannot pass the quota together.
_COUNT = text("""
WITH tenant AS (SELECT id FROM tenants WHERE id = :tenant_id FOR NO KEY UPDATE)
SELECT (SELECT count(*) FROM schedules AS s WHERE s.tenant_id = tenant.id AND s.deleted_at IS NULL) FROM tenant
""")

_INSERT = text("""
INSERT INTO schedules (id, tenant_id, name, cron, timezone, template, overlap, catch_up, catch_up_limit, misfire_grace,
    only_new, next_at, paused_at)
VALUES (:id, :tenant_id, :name, :cron, :timezone, CAST(:template AS jsonb), :overlap, :catch_up, :catch_up_limit,
    :misfire_grace, :only_new, :next_at, CASE WHEN :paused THEN now() END)
RETURNING *
""")

_GET = text("SELECT * FROM schedules WHERE id = :id AND tenant_id = :tenant_id AND deleted_at IS NULL")
_LOCK = text("""
SELECT * FROM schedules WHERE id = :id AND tenant_id = :tenant_id AND deleted_at IS NULL FOR NO KEY UPDATE
""")

_LIST = text("""
SELECT * FROM schedules
WHERE tenant_id = :tenant_id AND deleted_at IS NULL
  AND (CAST(:before AS uuid) IS NULL OR id < CAST(:before AS uuid))
ORDER BY id DESC
LIMIT :limit
""")

_SAVE = text("""
UPDATE schedules SET name = :name, cron = :cron, timezone = :timezone, template = CAST(:template AS jsonb),
    overlap = :overlap, catch_up = :catch_up, catch_up_limit = :catch_up_limit, misfire_grace = :misfire_grace,
    only_new = :only_new, next_at = :next_at, updated_at = now(),
    paused_at = CASE WHEN :paused THEN coalesce(paused_at, now()) END
WHERE id = :id AND tenant_id = :tenant_id AND deleted_at IS NULL
RETURNING *
""")

_DELETE = text("""
UPDATE schedules SET deleted_at = now(), next_at = NULL
WHERE id = :id AND tenant_id = :tenant_id AND deleted_at IS NULL
""")

# A tenant that is switched off fires nothing; its times are missed ones when it comes back.
_DUE = text("""
SELECT s.id FROM schedules AS s JOIN tenants AS t ON t.id = s.tenant_id
WHERE s.next_at <= :now AND t.disabled_at IS NULL
ORDER BY s.next_at
LIMIT :limit
""")

# Locked for the run: whoever comes second finds the next time moved on. Skipped where a request is changing it.
_LOCK_DUE = text("SELECT * FROM schedules WHERE id = :id AND next_at <= :now FOR NO KEY UPDATE SKIP LOCKED")

_ADVANCE = text("UPDATE schedules SET next_at = :next_at WHERE id = :id AND paused_at IS NULL AND deleted_at IS NULL")

# Its jobs are recorded (an unfinished one never is): nobody writes a row of it any more.
_GONE = text("""
SELECT s.id FROM schedules AS s
WHERE s.deleted_at IS NOT NULL AND NOT EXISTS (
    SELECT 1 FROM jobs AS j WHERE j.schedule_id = s.id AND j.objects_recorded_at IS NULL)
ORDER BY s.id
LIMIT 1
""")
_FORGET_OBJECTS = text("""
DELETE FROM schedule_objects WHERE (schedule_id, object) IN (
    SELECT schedule_id, object FROM schedule_objects WHERE schedule_id = :id LIMIT :limit)
""")
_FORGET_RUNS = text("""
DELETE FROM schedule_runs WHERE id IN (SELECT id FROM schedule_runs WHERE schedule_id = :id LIMIT :limit)
""")
_FORGET = text("DELETE FROM schedules WHERE id = :id AND deleted_at IS NOT NULL")


@dataclass(frozen=True, kw_only=True)
class NewSchedule:
    """A schedule to be made; everything is checked."""

    schedule_id: uuid.UUID
    tenant_id: uuid.UUID
    name: str
    rules: ScheduleRules
    template: JsonObject
    next_at: datetime | None
    paused: bool


def now(conn: Connection) -> datetime:
    """PostgreSQL's clock."""
    at: datetime = conn.execute(_NOW).scalar_one()
    return at


def count(conn: Connection, tenant_id: uuid.UUID) -> int:
    """How many the tenant has; nobody adds one to them until this transaction ends."""
    return int(conn.execute(_COUNT, {"tenant_id": tenant_id}).scalar_one())


def insert(conn: Connection, new: NewSchedule) -> Schedule:
    """Make a schedule. Raises `Conflict` where the tenant has one of this name; the transaction is then lost."""
    values = {
        **_columns(new.name, new.rules, new.template, new.next_at),
        "id": new.schedule_id,
        "tenant_id": new.tenant_id,
        "paused": new.paused,
    }
    return _written(conn, new.name, _INSERT, values)


def get(conn: Connection, tenant_id: uuid.UUID, schedule_id: uuid.UUID) -> Schedule | None:
    """The tenant's schedule."""
    row = conn.execute(_GET, {"id": schedule_id, "tenant_id": tenant_id}).one_or_none()
    return None if row is None else _schedule(row)


def lock(conn: Connection, tenant_id: uuid.UUID, schedule_id: uuid.UUID) -> Schedule | None:
    """The tenant's schedule, which nobody fires or changes until this transaction ends."""
    row = conn.execute(_LOCK, {"id": schedule_id, "tenant_id": tenant_id}).one_or_none()
    return None if row is None else _schedule(row)


def list_schedules(
    conn: Connection, tenant_id: uuid.UUID, *, limit: int, before: uuid.UUID | None = None
) -> tuple[Schedule, ...]:
    """The tenant's schedules, newest first, at most `limit`; `before` is the last id of the page before."""
    values = {"tenant_id": tenant_id, "limit": limit, "before": before}
    return tuple(_schedule(row) for row in conn.execute(_LIST, values))


def save(conn: Connection, schedule: Schedule, *, paused: bool) -> Schedule:
    """Write a locked schedule's new values. Raises `Conflict` as `insert` does."""
    values = {
        **_columns(schedule.name, schedule.rules, schedule.template, schedule.next_at),
        "id": schedule.schedule_id,
        "tenant_id": schedule.tenant_id,
        "paused": paused,
    }
    return _written(conn, schedule.name, _SAVE, values)


def delete(conn: Connection, tenant_id: uuid.UUID, schedule_id: uuid.UUID) -> bool:
    """It fires no more and is not seen any more; `forget` removes what belongs to it. False: there was none."""
    return conn.execute(_DELETE, {"id": schedule_id, "tenant_id": tenant_id}).rowcount == 1


def due(conn: Connection, at: datetime, *, limit: int = 1000) -> tuple[uuid.UUID, ...]:
    """Schedules of all tenants whose time has come, the longest overdue first."""
    return tuple(conn.execute(_DUE, {"now": at, "limit": limit}).scalars())


def lock_due(conn: Connection, schedule_id: uuid.UUID, at: datetime) -> Schedule | None:
    """A due schedule for whoever fires it; None where somebody else has it, or has fired it."""
    row = conn.execute(_LOCK_DUE, {"id": schedule_id, "now": at}).one_or_none()
    return None if row is None else _schedule(row)


def advance(conn: Connection, schedule_id: uuid.UUID, next_at: datetime | None) -> None:
    """The time that a locked schedule is due next."""
    conn.execute(_ADVANCE, {"id": schedule_id, "next_at": next_at})


def forget(conn: Connection, *, limit: int = 5_000) -> int:
    """Remove rows of a deleted schedule whose jobs have ended, at most `limit`; how many. The jobs stay."""
    schedule_id = conn.execute(_GONE).scalar_one_or_none()
    if schedule_id is None:
        return 0
    values = {"id": schedule_id, "limit": limit}
    removed = conn.execute(_FORGET_OBJECTS, values).rowcount or conn.execute(_FORGET_RUNS, values).rowcount
    return removed or conn.execute(_FORGET, {"id": schedule_id}).rowcount


def _columns(name: str, rules: ScheduleRules, template: JsonObject, next_at: datetime | None) -> dict[str, object]:
    return {
        "name": name,
        "cron": rules.cron,
        "timezone": rules.timezone,
        "overlap": str(rules.overlap),
        "catch_up": str(rules.catch_up),
        "catch_up_limit": rules.catch_up_limit,
        "misfire_grace": rules.misfire_grace,
        "only_new": rules.only_new,
        "template": to_json(template),
        "next_at": next_at,
    }


def _written(conn: Connection, name: str, statement: TextClause, values: dict[str, object]) -> Schedule:
    try:
        row = conn.execute(statement, values).one()
    except IntegrityError as error:
        raise Conflict(
            f"there is a schedule named {name!r} already; choose another name, or change that one"
        ) from error
    return _schedule(row)


def _schedule(row: Row[tuple[object, ...]]) -> Schedule:
    return Schedule(
        schedule_id=row.id,
        tenant_id=row.tenant_id,
        name=row.name,
        rules=ScheduleRules(
            cron=row.cron,
            timezone=row.timezone,
            overlap=Overlap(row.overlap),
            catch_up=CatchUp(row.catch_up),
            catch_up_limit=row.catch_up_limit,
            misfire_grace=row.misfire_grace,
            only_new=row.only_new,
        ),
        template=row.template,
        next_at=row.next_at,
        paused_at=row.paused_at,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
