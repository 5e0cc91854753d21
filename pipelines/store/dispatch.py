"""The leader's picks: which claimable rows go to a queue next.

Order: priority, then fair share, then age. A tenant's share is what it has in flight plus the row's place among its
own, over its weight; equal shares are drawn by lot. A pick walks, for each tenant with work, its active jobs in order
and takes the first claimable rows of each from a partial index of the one partition that holds the job, and stops at
the limit: 200 jobs of a million items cost what the picked rows cost.

A pick marks `enqueued_at` and nothing else; the caller commits, then publishes. Rows still claimable after a while are
unmarked by `requeue_stale`, so a lost message costs time only.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, TextClause, text

from pipelines.store import export_leases

_PICK = """
WITH load AS (
    SELECT * FROM unnest(CAST(:tenant_ids AS uuid[]), CAST(:loads AS bigint[])) AS l(tenant_id, entries)
),
claimable AS (
    SELECT working.tenant_id, waiting.job_id, waiting.priority, waiting.number
    FROM (
        SELECT DISTINCT tenant_id FROM jobs
        WHERE state IN ('queued', 'planning', 'running') AND priority BETWEEN :first_priority AND :last_priority
    ) AS working
    CROSS JOIN LATERAL (
        SELECT j.id AS job_id, j.priority, row.number
        FROM jobs AS j
        CROSS JOIN LATERAL (
            SELECT w.{number} AS number FROM {table} AS w
            WHERE w.job_id = j.id AND w.state = '{state}' AND w.enqueued_at IS NULL AND w.available_at <= now()
              AND {suspicion}
            ORDER BY w.{number}
            LIMIT :limit
        ) AS row
        WHERE j.tenant_id = working.tenant_id AND j.state IN ('queued', 'planning', 'running')
          AND j.priority BETWEEN :first_priority AND :last_priority
          AND j.cancel_requested_at IS NULL AND (j.deadline_at IS NULL OR j.deadline_at > now())
        ORDER BY j.priority, j.id, row.number
        LIMIT :limit
    ) AS waiting
),
shared AS (
    SELECT job_id, number, priority,
        (coalesce(load.entries, 0) + row_number() OVER (
            PARTITION BY claimable.tenant_id ORDER BY claimable.priority, job_id, number
        )) / t.weight AS share
    FROM claimable JOIN tenants AS t ON t.id = claimable.tenant_id LEFT JOIN load ON load.tenant_id = t.id
),
chosen AS (
    SELECT job_id, number, priority, row_number() OVER (ORDER BY priority, share, random()) AS place
    FROM shared
    ORDER BY place
    LIMIT :limit
),
picked AS (
    SELECT w.job_id, w.{number}, chosen.place
    FROM chosen JOIN {table} AS w ON w.job_id = chosen.job_id AND w.{number} = chosen.number
    WHERE w.state = '{state}' AND w.enqueued_at IS NULL
    FOR NO KEY UPDATE OF w SKIP LOCKED
)
UPDATE {table} AS w SET enqueued_at = now()
FROM picked
WHERE w.job_id = picked.job_id AND w.{number} = picked.{number} AND w.state = '{state}' AND w.enqueued_at IS NULL
RETURNING w.job_id, w.{number} AS number, w.doc, w.losses, picked.place
"""

_TRUSTED = "w.losses = 0"
_SUSPECT = "w.losses > 0 AND w.state IN ('pending', 'ready') AND w.losses BETWEEN :least AND :most"


def _pick(table: str, number: str, state: str, suspicion: str) -> TextClause:
    return text(_PICK.format(table=table, number=number, state=state, suspicion=suspicion))


_DOCUMENTS = {
    False: _pick("documents", "doc", "pending", _TRUSTED),
    True: _pick("documents", "doc", "pending", _SUSPECT),
}
_PREPARES = {False: _pick("items", "seq", "pending", _TRUSTED), True: _pick("items", "seq", "pending", _SUSPECT)}
_INFERS = {False: _pick("items", "seq", "ready", _TRUSTED), True: _pick("items", "seq", "ready", _SUSPECT)}

# Plans are one row a job; a suspect plan waits while too many of its sort are on their way.
_PLANS = text("""
WITH waiting AS (
    SELECT id, priority, least(plan_losses, 2) AS losses,
        row_number() OVER (PARTITION BY tenant_id ORDER BY priority, id) AS share,
        row_number() OVER (PARTITION BY least(plan_losses, 2) ORDER BY priority, id) AS place
    FROM jobs
    WHERE state IN ('queued', 'planning', 'running') AND priority BETWEEN :first_priority AND :last_priority
      AND plan_state = 'pending' AND plan_enqueued_at IS NULL AND plan_available_at <= now()
      AND cancel_requested_at IS NULL AND (deadline_at IS NULL OR deadline_at > now())
),
busy AS (
    SELECT least(plan_losses, 2) AS losses, count(*) AS n FROM jobs
    WHERE state IN ('queued', 'planning', 'running') AND plan_losses > 0
      AND (plan_state = 'leased' OR plan_state = 'pending' AND plan_enqueued_at IS NOT NULL)
    GROUP BY 1
),
picked AS (
    SELECT jobs.id
    FROM jobs JOIN (
        SELECT waiting.id FROM waiting LEFT JOIN busy USING (losses)
        WHERE losses = 0 OR place + coalesce(busy.n, 0) <= CASE losses WHEN 1 THEN :lane ELSE 1 END
        ORDER BY priority, share
        LIMIT :limit
    ) AS chosen ON chosen.id = jobs.id
    WHERE plan_state = 'pending' AND plan_enqueued_at IS NULL
    FOR NO KEY UPDATE OF jobs SKIP LOCKED
)
UPDATE jobs SET plan_enqueued_at = now() FROM picked WHERE jobs.id = picked.id
RETURNING jobs.id
""")

_STALE_ITEMS = text("""
WITH stale AS (
    SELECT job_id, seq FROM items
    WHERE state IN ('pending', 'ready') AND enqueued_at IS NOT NULL
      AND enqueued_at <= now() - make_interval(secs => :older_than)
    FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE items AS i SET enqueued_at = NULL FROM stale
WHERE i.job_id = stale.job_id AND i.seq = stale.seq AND i.state IN ('pending', 'ready')
""")
_STALE_DOCUMENTS = text("""
WITH stale AS (
    SELECT job_id, doc FROM documents
    WHERE state = 'pending' AND enqueued_at IS NOT NULL
      AND enqueued_at <= now() - make_interval(secs => :older_than)
    FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE documents AS d SET enqueued_at = NULL FROM stale
WHERE d.job_id = stale.job_id AND d.doc = stale.doc AND d.state = 'pending'
""")
_STALE_PLANS = text("""
WITH stale AS (
    SELECT id FROM jobs
    WHERE state IN ('queued', 'planning', 'running') AND plan_state = 'pending'
      AND plan_enqueued_at <= now() - make_interval(secs => :older_than)
    FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE jobs SET plan_enqueued_at = NULL FROM stale WHERE jobs.id = stale.id
""")

_UNMARK = """
UPDATE {table} AS w SET enqueued_at = NULL
FROM unnest(CAST(:job_ids AS uuid[]), CAST(:numbers AS bigint[])) AS k(job_id, number)
WHERE w.job_id = k.job_id AND w.{number} = k.number AND w.state IN ('pending', 'ready')
"""
_UNMARK_ITEMS = text(_UNMARK.format(table="items", number="seq"))
_UNMARK_DOCUMENTS = text(_UNMARK.format(table="documents", number="doc"))


@dataclass(frozen=True, kw_only=True)
class Lane:
    """Interactive jobs have queues of their own; all others share one, ordered by their priority."""

    interactive: bool

    @property
    def bounds(self) -> dict[str, int]:
        """The first and last priority of the lane."""
        return (
            {"first_priority": 0, "last_priority": 0}
            if self.interactive
            else {"first_priority": 1, "last_priority": 99}
        )


@dataclass(frozen=True, kw_only=True)
class Suspicion:
    """Pick only rows that lost between `least` and `most` leases."""

    least: int
    most: int


@dataclass(frozen=True, kw_only=True)
class Picked:
    """A row that was marked: `number` is its seq (items) or doc (documents)."""

    job_id: uuid.UUID
    number: int
    doc: int
    losses: int


Loads = Mapping[uuid.UUID, int]
"""In flight, by tenant."""


def pick_plans(conn: Connection, lane: Lane, *, limit: int, suspects: int) -> tuple[uuid.UUID, ...]:
    """Jobs whose plan goes to a worker next; of plans that lost one lease at most `suspects` are under way at once."""
    values = {**lane.bounds, "limit": limit, "lane": suspects}
    return tuple(row.id for row in conn.execute(_PLANS, values))


def pick_documents(
    conn: Connection, lane: Lane, *, limit: int, loads: Loads, suspicion: Suspicion | None = None
) -> tuple[Picked, ...]:
    """Documents that are paged next, in order; with `suspicion`, suspects instead of the others."""
    return _picked(conn, _DOCUMENTS, lane, limit, loads, suspicion)


def pick_prepares(
    conn: Connection, lane: Lane, *, limit: int, loads: Loads, suspicion: Suspicion | None = None
) -> tuple[Picked, ...]:
    """Pending items that are prepared next, in order; with `suspicion`, suspects instead of the others."""
    return _picked(conn, _PREPARES, lane, limit, loads, suspicion)


def pick_infers(
    conn: Connection, lane: Lane, *, limit: int, loads: Loads, suspicion: Suspicion | None = None
) -> tuple[Picked, ...]:
    """Ready items that an engine answers next, in order; with `suspicion`, suspects instead of the others."""
    return _picked(conn, _INFERS, lane, limit, loads, suspicion)


def unmark_items(conn: Connection, picked: Sequence[Picked]) -> None:
    """Undo the picks of items for which there was no room, in the transaction that made them."""
    _unmark(conn, _UNMARK_ITEMS, picked)


def unmark_documents(conn: Connection, picked: Sequence[Picked]) -> None:
    """The same for documents."""
    _unmark(conn, _UNMARK_DOCUMENTS, picked)


def requeue_stale(conn: Connection, older_than: float) -> int:
    """Unmark what was published more than `older_than` seconds ago and not claimed; how many rows that were."""
    values = {"older_than": older_than}
    rows = sum(conn.execute(sql, values).rowcount for sql in (_STALE_ITEMS, _STALE_DOCUMENTS, _STALE_PLANS))
    return rows + export_leases.requeue_stale(conn, older_than)


def _picked(
    conn: Connection,
    statements: Mapping[bool, TextClause],
    lane: Lane,
    limit: int,
    loads: Loads,
    suspicion: Suspicion | None,
) -> tuple[Picked, ...]:
    values: dict[str, object] = {
        **lane.bounds,
        "limit": limit,
        "tenant_ids": list(loads),
        "loads": list(loads.values()),
    }
    if suspicion is not None:
        values |= {"least": suspicion.least, "most": suspicion.most}
    rows = sorted(conn.execute(statements[suspicion is not None], values), key=lambda row: row.place)
    return tuple(Picked(job_id=row.job_id, number=row.number, doc=row.doc, losses=row.losses) for row in rows)


def _unmark(conn: Connection, statement: TextClause, picked: Sequence[Picked]) -> None:
    if picked:
        values = {"job_ids": [row.job_id for row in picked], "numbers": [row.number for row in picked]}
        conn.execute(statement, values)
