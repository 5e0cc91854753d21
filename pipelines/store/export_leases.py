"""Work on exports: leased, fenced by the attempt, committed shard by shard; picked, swept and sent again like plans.

A shard lies at the target before its row is committed together with the cursor behind it. Whoever takes the export up
goes on from there, so a worker that dies costs one shard; a worker that only seemed dead finds its attempt gone, and
what it puts afterwards has the very name and bytes that the other has put or will put.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, text

from pipelines.jobs.errors import WorkerLost
from pipelines.jobs.outcomes import Retry
from pipelines.store.exports import Export, Shard, export_of
from pipelines.store.values import Wake, clean_text, to_json, wake

MAX_LOSSES = 3
"""The lease whose loss at one and the same shard ends an export."""

_LOST_MESSAGE = "the worker that wrote it died three times at the same shard; ask for smaller shards"

_CLAIM = text("""
WITH picked AS (
    SELECT id FROM exports
    WHERE id = :id AND state = 'pending' AND available_at <= now() AND (losses = 0 OR enqueued_at IS NOT NULL)
    FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE exports AS e SET state = 'running', attempt = attempt + 1, worker = :worker, enqueued_at = NULL,
    lease_until = now() + make_interval(secs => :lease), started_at = coalesce(started_at, now())
FROM picked, tenants AS t
WHERE e.id = picked.id AND e.state = 'pending' AND t.id = e.tenant_id
RETURNING e.*, t.export_buckets
""")

# Fence and progress in one: where the attempt is gone nothing is written.
_ADVANCE = text("""
UPDATE exports SET cursor = CAST(:cursor AS jsonb), shards = shards + :shards, rows = rows + :rows,
    errors = errors + :errors, bytes = bytes + :bytes, losses = 0, fails = 0,
    lease_until = now() + make_interval(secs => :lease)
WHERE id = :id AND state = 'running' AND attempt = :attempt
RETURNING *
""")
_INSERT_SHARD = text("""
INSERT INTO export_shards (export_id, number, content, name, rows, bytes, sha256, first_seq, last_seq)
VALUES (:export_id, :number, :content, :name, :rows, :bytes, :sha256, :first_seq, :last_seq)
""")
_FINISH = text("""
UPDATE exports SET state = 'succeeded', finished_at = now(), lease_until = NULL
WHERE id = :id AND state = 'running' AND attempt = :attempt
""")
_FAIL = text("""
UPDATE exports SET state = 'failed', finished_at = now(), lease_until = NULL, error_code = :code,
    error_message = :message
WHERE id = :id AND state = 'running' AND attempt = :attempt
""")
_GIVE_BACK = text("""
UPDATE exports SET state = 'pending', lease_until = NULL, available_at = now() + make_interval(secs => :delay),
    fails = fails + :counted
WHERE id = :id AND state = 'running' AND attempt = :attempt
""")
_FAILS = text("SELECT fails FROM exports WHERE id = :id")
_HEARTBEAT = text("""
WITH held AS (SELECT * FROM unnest(CAST(:ids AS uuid[]), CAST(:attempts AS int[])) AS h(id, attempt)),
locked AS (
    SELECT e.id, e.attempt FROM held JOIN exports AS e ON e.id = held.id
    WHERE e.state = 'running' AND e.attempt = held.attempt
    ORDER BY e.id
    FOR NO KEY UPDATE OF e
)
UPDATE exports AS e SET lease_until = now() + make_interval(secs => :lease)
FROM locked
WHERE e.id = locked.id AND e.state = 'running' AND e.attempt = locked.attempt
RETURNING e.id, e.attempt
""")

# Few at a time, for each fills a process of a cpu worker; a turn each, by tenant, the longest waiting first.
_PICK = text("""
WITH busy AS (
    SELECT tenant_id, count(*) AS n FROM exports
    WHERE state IN ('pending', 'running') AND (state = 'running' OR enqueued_at IS NOT NULL)
    GROUP BY tenant_id
),
picked AS (
    SELECT e.id FROM exports AS e JOIN (
        SELECT w.id, w.available_at, coalesce(busy.n, 0) + row_number() OVER (
            PARTITION BY w.tenant_id ORDER BY w.available_at, w.id
        ) AS share
        FROM exports AS w LEFT JOIN busy ON busy.tenant_id = w.tenant_id
        WHERE w.state IN ('pending', 'running') AND w.state = 'pending' AND w.enqueued_at IS NULL
          AND w.available_at <= now()
    ) AS waiting ON waiting.id = e.id
    WHERE e.state = 'pending' AND e.enqueued_at IS NULL
    ORDER BY waiting.share, waiting.available_at, waiting.id
    LIMIT least(:limit, greatest(0, :most - (SELECT CAST(coalesce(sum(n), 0) AS bigint) FROM busy)))
    FOR NO KEY UPDATE OF e SKIP LOCKED
)
UPDATE exports AS e SET enqueued_at = now() FROM picked WHERE e.id = picked.id
RETURNING e.id
""")
_STALE = text("""
WITH stale AS (
    SELECT id FROM exports
    WHERE state IN ('pending', 'running') AND state = 'pending'
      AND enqueued_at <= now() - make_interval(secs => :older_than)
    FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE exports AS e SET enqueued_at = NULL FROM stale WHERE e.id = stale.id AND e.state = 'pending'
""")
_EXPIRE = text("""
WITH expired AS (
    SELECT id, losses + 1 >= :max_losses AS lost FROM exports
    WHERE state IN ('pending', 'running') AND state = 'running' AND lease_until < now()
    FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE exports AS e SET state = CASE WHEN lost THEN 'failed' ELSE 'pending' END, losses = e.losses + 1,
    lease_until = NULL, available_at = now(), finished_at = CASE WHEN lost THEN now() END,
    error_code = CASE WHEN lost THEN :code END, error_message = CASE WHEN lost THEN :message END
FROM expired
WHERE e.id = expired.id AND e.state = 'running'
""")


@dataclass(frozen=True, kw_only=True)
class ExportLease:
    """An export under a lease of ours. `attempt` is the fencing token, `cursor` where it goes on; `lease` in seconds.

    `buckets` are those that its tenant may write to; None: the installation's own list.
    """

    export: Export
    attempt: int
    fails: int
    cursor: Mapping[str, Any]
    buckets: tuple[str, ...] | None
    lease: float


def claim(conn: Connection, export_id: uuid.UUID, *, worker: str, lease: float) -> ExportLease | None:
    """Lease the export for `lease` seconds; None where it is held, has ended or is not due yet."""
    row = conn.execute(_CLAIM, {"id": export_id, "worker": worker, "lease": lease}).one_or_none()
    if row is None:
        return None
    return ExportLease(
        export=export_of(row),
        attempt=row.attempt,
        fails=row.fails,
        cursor=row.cursor or {},
        buckets=None if row.export_buckets is None else tuple(row.export_buckets),
        lease=lease,
    )


def advance(
    conn: Connection, lease: ExportLease, *, shards: Sequence[Shard], cursor: Mapping[str, Any]
) -> ExportLease | None:
    """Commit shards that lie at the target, and the cursor behind them. None where the lease was lost: stop."""
    values = {
        **_mine(lease),
        "cursor": to_json(cursor),
        "shards": len(shards),
        "rows": sum(shard.rows for shard in shards if shard.content != "errors"),
        "errors": sum(shard.rows for shard in shards if shard.content == "errors"),
        "bytes": sum(shard.bytes for shard in shards),
        "lease": lease.lease,
    }
    row = conn.execute(_ADVANCE, values).one_or_none()
    if row is None:
        return None
    for shard in shards:
        conn.execute(
            _INSERT_SHARD,
            {
                "export_id": lease.export.export_id,
                "number": shard.number,
                "content": shard.content,
                "name": shard.name,
                "rows": shard.rows,
                "bytes": shard.bytes,
                "sha256": shard.sha256,
                "first_seq": shard.first_seq,
                "last_seq": shard.last_seq,
            },
        )
    return replace(lease, export=export_of(row), cursor=cursor, fails=0)


def finish(conn: Connection, lease: ExportLease) -> bool:
    """The manifest lies at the target. False where the lease was lost."""
    finished = conn.execute(_FINISH, _mine(lease)).rowcount == 1
    wake(conn, Wake.EXPORT)  # there is room for another
    return finished


def fail(conn: Connection, lease: ExportLease, *, code: str, message: str) -> bool:
    """End it without a manifest. False where the lease was lost."""
    failed = conn.execute(_FAIL, {**_mine(lease), "code": code, "message": clean_text(message)}).rowcount == 1
    wake(conn, Wake.EXPORT)
    return failed


def fails_now(conn: Connection, lease: ExportLease) -> int:
    """Counted failures since the last committed shard."""
    return int(conn.execute(_FAILS, _mine(lease)).scalar_one_or_none() or 0)


def retry(conn: Connection, lease: ExportLease, outcome: Retry) -> bool:
    """Give it back for a later try, at its cursor. False where the lease was lost."""
    return _give_back(conn, lease, delay=outcome.delay, counted=outcome.counted)


def release(conn: Connection, lease: ExportLease) -> bool:
    """Give it back untouched: its turn is over, or the worker stops. False where the lease was lost."""
    return _give_back(conn, lease, delay=0.0, counted=False)


def heartbeat(
    conn: Connection, held: Sequence[tuple[uuid.UUID, int]], *, lease: float
) -> frozenset[tuple[uuid.UUID, int]]:
    """Extend the leases of `held` (export, attempt) by `lease` seconds; what is not returned was lost or cancelled."""
    values = {"ids": [export for export, _ in held], "attempts": [attempt for _, attempt in held], "lease": lease}
    return frozenset((row.id, row.attempt) for row in conn.execute(_HEARTBEAT, values))


def pick(conn: Connection, *, limit: int, most: int) -> tuple[uuid.UUID, ...]:
    """Exports that go to a worker next, marked; with those under way never more than `most`."""
    return tuple(conn.execute(_PICK, {"limit": limit, "most": most}).scalars())


def requeue_stale(conn: Connection, older_than: float) -> int:
    """Unmark what was published more than `older_than` seconds ago and not claimed; how many."""
    return conn.execute(_STALE, {"older_than": older_than}).rowcount


def expire(conn: Connection) -> int:
    """Send exports of expired leases back to `pending`; the third loss at one shard fails them. How many leases."""
    values = {"max_losses": MAX_LOSSES, "code": WorkerLost.code, "message": _LOST_MESSAGE}
    swept = conn.execute(_EXPIRE, values).rowcount
    if swept:
        wake(conn, Wake.EXPORT)
    return swept


def _give_back(conn: Connection, lease: ExportLease, *, delay: float, counted: bool) -> bool:
    values = {**_mine(lease), "delay": delay, "counted": int(counted)}
    returned = conn.execute(_GIVE_BACK, values).rowcount == 1
    if returned:
        wake(conn, Wake.EXPORT)
    return returned


def _mine(lease: ExportLease) -> dict[str, Any]:
    return {"id": lease.export.export_id, "attempt": lease.attempt}
