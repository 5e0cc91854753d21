"""Every claim of every item, written by triggers: who held it, how it ended, and when its item was claimed again.

The harness's own book-keeping, in tables of its own; the product knows nothing of it.
"""

from __future__ import annotations

import statistics
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from pipelines.jobs.errors import BatchsightError
from pipelines.store.session import Database

# `contact` is the last sign of life of who held it. What goes back without a loss or a failure was released by a worker
# that stops, or its pack was damaged: work done for nothing, too. A pause: for one lease no losses are counted, because
# the leader or the database was away.
_NOTES = """
CREATE TABLE chaos_claims (
    job_id uuid, seq bigint, attempt int, stage text, worker text, claimed timestamptz, contact timestamptz,
    ended timestamptz, how text, code text, PRIMARY KEY (job_id, seq, attempt)
);
CREATE TABLE chaos_pauses (at timestamptz);
CREATE FUNCTION chaos_paused() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO chaos_pauses VALUES (clock_timestamp());
    RETURN NULL;
END $$;
CREATE FUNCTION chaos_claimed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO chaos_claims (job_id, seq, attempt, stage, worker, claimed)
    VALUES (NEW.job_id, NEW.seq, NEW.attempt, NEW.state, NEW.worker, clock_timestamp());
    RETURN NULL;
END $$;
CREATE FUNCTION chaos_ended() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE chaos_claims SET ended = clock_timestamp(), code = NEW.error_code,
        contact = OLD.lease_until - make_interval(secs => {lease}),
        how = CASE
            WHEN NEW.fails > OLD.fails THEN 'retried'
            WHEN NEW.losses > OLD.losses THEN 'lost'
            WHEN NEW.finished_at IS NOT NULL OR OLD.state = 'preparing' AND NEW.state = 'ready' THEN 'passed'
            WHEN NEW.error_code = 'pack_damaged' THEN 'repaired'
            ELSE 'released' END
    WHERE job_id = OLD.job_id AND seq = OLD.seq AND attempt = OLD.attempt;
    RETURN NULL;
END $$;
"""
# Each in a transaction of its own: the stack runs, and a transaction with two tables' locks deadlocks with its own.
_TRIGGERS = (
    """CREATE TRIGGER chaos_paused AFTER UPDATE ON leader FOR EACH ROW WHEN (NEW.losses_from > OLD.losses_from)
       EXECUTE FUNCTION chaos_paused()""",
    """CREATE TRIGGER chaos_claimed AFTER UPDATE ON items FOR EACH ROW WHEN (NEW.attempt > OLD.attempt)
       EXECUTE FUNCTION chaos_claimed()""",
    """CREATE TRIGGER chaos_ended AFTER UPDATE ON items FOR EACH ROW
       WHEN (OLD.state IN ('preparing', 'inferring') AND NEW.state <> OLD.state) EXECUTE FUNCTION chaos_ended()""",
)

_LEASED = """
SELECT count(*) FROM items WHERE state IN ('preparing', 'inferring') AND worker LIKE %s
"""
_LOST_TWICE = _LEASED.rstrip() + " AND losses >= 2"
_LOST_OF = "SELECT count(*) FROM chaos_claims WHERE how = 'lost' AND worker LIKE %s"
_RETRIED = "SELECT count(*) FROM chaos_claims WHERE how = 'retried' AND code = %s"
_PASSED_BY = "SELECT count(*) FROM chaos_claims WHERE how = 'passed' AND worker LIKE %s"

# From the last sign of life of the worker that was lost: to when its item was in line again, and to its next claim.
# The second has the queue in it, and the turn that a suspect waits for.
_RECOVERIES = """
SELECT extract(epoch FROM lost.ended - lost.contact) AS in_line,
    extract(epoch FROM next.claimed - lost.contact) AS claimed,
    EXISTS (SELECT 1 FROM chaos_pauses WHERE at BETWEEN lost.contact - interval '{lease} s' AND lost.ended) AS paused
FROM chaos_claims AS lost
LEFT JOIN chaos_claims AS next ON next.job_id = lost.job_id AND next.seq = lost.seq AND next.attempt = lost.attempt + 1
WHERE lost.how = 'lost'
"""
_ENDINGS = "SELECT coalesce(how, 'open') AS how, count(*) AS n FROM chaos_claims GROUP BY 1"
_RETRIES = "SELECT job_id, seq, code FROM chaos_claims WHERE how = 'retried'"


def install(database: Database, *, lease: float) -> None:
    """Begin to note."""
    for statement in (_NOTES.replace("{lease}", str(lease)), *_TRIGGERS):
        with database.begin() as conn:
            conn.exec_driver_sql(statement)


def held(database: Database, role: str) -> int:
    """Leases that a role's processes hold now; 0 while the database is down."""
    return _count(database, _LEASED, _of(role))


def lost_twice(database: Database, role: str) -> int:
    """Those of them whose items have lost two workers already: the next loss ends them, by design."""
    return _count(database, _LOST_TWICE, _of(role), down=1)


def lost(database: Database, role: str) -> int:
    """Leases that a role's processes have lost so far."""
    return _count(database, _LOST_OF, _of(role))


def retried(database: Database, code: str) -> int:
    """Claims that ended in a retry with this code."""
    return _count(database, _RETRIED, code)


def passed(database: Database, role: str) -> int:
    """Claims of a role's processes that brought their item forward."""
    return _count(database, _PASSED_BY, _of(role))


@dataclass(frozen=True, kw_only=True)
class Summary:
    """`endings`: claims by how they ended; `retried`: job, item and code of each that ended in a retry.

    Seconds from a lost worker's last sign of life until its items were `in_line` and `claimed` again; the first only
    for those during which nothing kept the leader from counting losses.
    """

    endings: dict[str, int]
    retried: Sequence[tuple[uuid.UUID, int, str]]
    in_line: Sequence[float]
    claimed: Sequence[float]


def p50(seconds: Sequence[float]) -> float:
    """The median; 0 without any."""
    return round(statistics.median(seconds), 2) if seconds else 0.0


def p99(seconds: Sequence[float]) -> float:
    """All but one of a hundred were as quick as this; 0 without any."""
    return round(sorted(seconds)[int(0.99 * (len(seconds) - 1))], 2) if seconds else 0.0


def summary(conn: Connection, *, lease: float) -> Summary:
    """What has been noted; nothing where nothing was installed."""
    if conn.exec_driver_sql("SELECT to_regclass('chaos_claims')").scalar_one() is None:
        return Summary(endings={}, retried=(), in_line=(), claimed=())
    recoveries = conn.exec_driver_sql(_RECOVERIES.replace("{lease}", str(lease))).all()
    return Summary(
        endings={row.how: row.n for row in conn.exec_driver_sql(_ENDINGS)},
        retried=[(row.job_id, row.seq, row.code) for row in conn.exec_driver_sql(_RETRIES)],
        in_line=[float(row.in_line) for row in recoveries if not row.paused],
        claimed=[float(row.claimed) for row in recoveries if row.claimed is not None],
    )


def _of(role: str) -> str:
    """Workers are named role@host:pid, and each role of the proof has a host's name of its own."""
    return f"%@{role}:%"


def _count(database: Database, sql: str, value: Any, *, down: int = 0) -> int:
    with suppress(BatchsightError), database.begin() as conn:
        return int(conn.exec_driver_sql(sql, (value,)).scalar_one())
    return down
