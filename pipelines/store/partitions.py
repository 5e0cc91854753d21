"""Monthly range partitions of `documents`, `items` and `results`: created ahead, listed, dropped when they are old.

A job id is a UUIDv7, so a month of ids is a range. A DEFAULT partition catches ids outside of every month (an api
server with a wrong clock): nothing is refused, and `default_rows` is the alarm. Creating a month moves what the default
holds of it. Upkeep runs in the leader, off the path; its locks wait five seconds at most and are tried again later.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection, text

from pipelines.jobs.ids import uuid7_floor
from pipelines.store.tables import PARTITIONED

MONTHS_AHEAD = 2

_STORAGE = {
    "documents": "fillfactor = 90, autovacuum_vacuum_scale_factor = 0.05",
    "items": "fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02",
    "results": "autovacuum_vacuum_insert_scale_factor = 0.1",
}

_LOCKS = text("SELECT set_config('lock_timeout', '5s', true), pg_advisory_xact_lock(hashtext('batchsight.partitions'))")

# Children of the partitioned tables with their bounds as text; the default partition's bound is the word DEFAULT.
_LIST = text("""
SELECT parent.relname AS parent, child.relname AS name, pg_get_expr(child.relpartbound, child.oid) AS bound
FROM pg_inherits
JOIN pg_class AS parent ON parent.oid = inhparent
JOIN pg_class AS child ON child.oid = inhrelid
WHERE parent.relname = ANY(:parents) AND parent.relnamespace = current_schema()::regnamespace
ORDER BY parent.relname, child.relname
""")

_NOW = text("SELECT now()")

# The table's name comes from PARTITIONED, never from outside. Counting stops at the limit: an alarm needs no more.
_DEFAULT_ROWS = "SELECT count(*) FROM (SELECT 1 FROM {table}_default LIMIT :limit) AS found"

_BOUND = re.compile(r"FROM \('([0-9a-f-]{36})'\) TO \('([0-9a-f-]{36})'\)")


@dataclass(frozen=True, kw_only=True)
class Partition:
    """One month of one table: ids from `lower` up to, not including, `upper`."""

    table: str
    name: str
    lower: uuid.UUID
    upper: uuid.UUID

    @property
    def end(self) -> datetime:
        """The first moment after the partition."""
        return datetime.fromtimestamp((self.upper.int >> 80) / 1000, UTC)


def month_start(at: datetime, offset: int = 0) -> datetime:
    """The first moment (UTC) of the month of `at`, moved by `offset` months."""
    at = at.astimezone(UTC)
    months = at.year * 12 + at.month - 1 + offset
    return datetime(months // 12, months % 12 + 1, 1, tzinfo=UTC)


def create_ahead(conn: Connection, *, months: int = MONTHS_AHEAD) -> tuple[str, ...]:
    """Create this month's partitions and the next `months`; the names of those that were missing."""
    conn.execute(_LOCKS)
    now: datetime = conn.execute(_NOW).scalar_one()
    created: list[str] = []
    for offset in range(months + 1):
        created += create_month(conn, month_start(now, offset))
    return tuple(created)


def create_month(conn: Connection, month: datetime) -> tuple[str, ...]:
    """Create the partitions of the month that starts at `month`, where they are missing; their names."""
    start = month_start(month)
    lower, upper = uuid7_floor(start), uuid7_floor(month_start(start, 1))
    there = {partition.name for partition in list_months(conn)}
    created = []
    for table in PARTITIONED:
        name = f"{table}_{start:%Y%m}"
        if name in there:
            continue
        # Attached, not created in place: ATTACH lets readers and writers of the other months go on.
        for statement in (
            f"CREATE TABLE {name} (LIKE {table} INCLUDING ALL) WITH ({_STORAGE[table]})",
            f"WITH moved AS (DELETE FROM {table}_default WHERE job_id >= '{lower}' AND job_id < '{upper}' RETURNING *) "
            f"INSERT INTO {name} SELECT * FROM moved",
            f"ALTER TABLE {table} ATTACH PARTITION {name} FOR VALUES FROM ('{lower}') TO ('{upper}')",
        ):
            conn.exec_driver_sql(statement)
        created.append(name)
    return tuple(created)


def list_months(conn: Connection) -> tuple[Partition, ...]:
    """Every partition with bounds, by table and month; the default partitions are left out."""
    found = []
    for row in conn.execute(_LIST, {"parents": list(PARTITIONED)}):
        if match := _BOUND.search(row.bound):
            found.append(
                Partition(table=row.parent, name=row.name, lower=uuid.UUID(match[1]), upper=uuid.UUID(match[2]))
            )
    return tuple(found)


def drop(conn: Connection, partition: Partition) -> None:
    """Detach and drop one partition, rows and all. The caller has made sure that no unfinished job lies in it."""
    conn.execute(_LOCKS)
    conn.exec_driver_sql(f"ALTER TABLE {partition.table} DETACH PARTITION {partition.name}")
    conn.exec_driver_sql(f"DROP TABLE {partition.name}")


def default_rows(conn: Connection, *, limit: int = 10_000) -> dict[str, int]:
    """Rows in each default partition, counted up to `limit`: more than none means that a clock is wrong."""
    return {
        table: conn.execute(text(_DEFAULT_ROWS.format(table=table)), {"limit": limit}).scalar_one()
        for table in PARTITIONED
    }
