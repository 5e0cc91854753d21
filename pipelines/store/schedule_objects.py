"""Which objects a schedule has done, by version: written from the items of its jobs, asked while a source is listed.

Written in windows of items, each statement repeatable: it takes the pages that have succeeded from those that are
missing. So it does not matter who writes, how often, or whether the job still runs; what a later redrive of failed
items adds is subtracted in the same way. See `pipelines.store.schedule_tables` for why this is a table.

Measured at 1,000,000 objects, two busy cores: 20 s to write them all down (0.1 s a window), 0.18 s to ask for 5,000 of
them, 250 MB with the key.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text

from pipelines.jobs.models import MediaRef
from pipelines.store.values import clean_text

KEPT = 400
"""Days after which an object is forgotten that the schedule's runs have not listed any more."""
WINDOW = 5_000
_LISTED_AGAIN = 30  # days: a listed row is touched no oftener, for touching a million rows each night has its price
_PRUNED_A_RUN = 50_000

_UNRECORDED = """
SELECT j.id AS job_id, j.schedule_id, j.item_count, j.finished_at IS NOT NULL AS ended,
    coalesce(r.fired_at, j.created_at) AS run_at,
    coalesce(s.only_new OR r.only_new, false) AND s.deleted_at IS NULL AND j.source->>'type' = 'prefix' AS wanted
FROM jobs AS j LEFT JOIN schedules AS s ON s.id = j.schedule_id LEFT JOIN schedule_runs AS r ON r.id = j.schedule_run_id
WHERE j.schedule_id IS NOT NULL AND j.objects_recorded_at IS NULL
"""
_ENDED = text(_UNRECORDED + "AND j.finished_at IS NOT NULL ORDER BY j.id LIMIT :limit")
_OF_SCHEDULE = text(_UNRECORDED + "AND j.schedule_id = :schedule_id AND j.id <> :but ORDER BY j.id")

# `missing` of the new row: all pages but those that succeeded in this window. Against a row of the same version that
# leaves what neither had; a row of another version gives way to a newer run only. In order of the key, so that two who
# write at once wait for each other in one direction.
_RECORD = text("""
WITH done AS (
    SELECT doc, array_agg(page) AS pages FROM items
    WHERE job_id = :job_id AND seq >= :start AND seq < :until AND state = 'succeeded'
    GROUP BY doc
),
object AS (
    SELECT sha256(convert_to(d.media->0->>'url', 'UTF8')) AS object, d.media->0->>'version' AS version, d.pages,
        CASE WHEN d.pages IS NULL THEN CAST('{}' AS int[])
            ELSE ARRAY(SELECT generate_series(0, d.pages - 1) EXCEPT SELECT unnest(done.pages) ORDER BY 1)
        END AS missing
    FROM done JOIN documents AS d ON d.job_id = :job_id AND d.doc = done.doc
    WHERE d.media->0->>'version' IS NOT NULL
)
INSERT INTO schedule_objects AS o (schedule_id, object, version, missing, pages, run_at)
SELECT :schedule_id, object, version, missing, pages, :run_at FROM object ORDER BY object
ON CONFLICT (schedule_id, object) DO UPDATE SET version = excluded.version, pages = excluded.pages,
    run_at = greatest(o.run_at, excluded.run_at), listed_at = greatest(o.listed_at, excluded.listed_at),
    missing = CASE WHEN o.version = excluded.version
        THEN ARRAY(SELECT unnest(o.missing) INTERSECT SELECT unnest(excluded.missing) ORDER BY 1)
        ELSE excluded.missing END
WHERE o.version = excluded.version AND o.missing <> '{}' OR o.version <> excluded.version AND o.run_at < excluded.run_at
""")

_RECORDED = text("UPDATE jobs SET objects_recorded_at = now() WHERE id = :job_id AND finished_at IS NOT NULL")

_PRUNE = text("""
DELETE FROM schedule_objects WHERE (schedule_id, object) IN (
    SELECT schedule_id, object FROM schedule_objects
    WHERE schedule_id = :schedule_id AND listed_at < CAST(:run_at AS timestamptz) - make_interval(days => :kept)
    LIMIT :limit)
""")

_KNOWN = text("""
SELECT e.n, o.missing, o.pages, o.object, o.listed_at < now() - make_interval(days => :touch) AS stale
FROM unnest(CAST(:urls AS text[]), CAST(:versions AS text[])) WITH ORDINALITY AS e(url, version, n)
JOIN schedule_objects AS o ON o.schedule_id = :schedule_id AND o.object = sha256(convert_to(e.url, 'UTF8'))
    AND o.version = e.version
""")
_TOUCH = text("""
UPDATE schedule_objects SET listed_at = now()
WHERE schedule_id = :schedule_id AND object = ANY(CAST(:objects AS bytea[]))
""")


@dataclass(frozen=True, kw_only=True)
class Unrecorded:
    """A job of a schedule whose successes may not be written yet. `wanted`: they are asked for at all."""

    job_id: uuid.UUID
    schedule_id: uuid.UUID
    item_count: int
    ended: bool
    run_at: datetime
    wanted: bool


@dataclass(frozen=True, kw_only=True)
class Known:
    """An object that an earlier run has done in this version, but for the pages in `missing` (of `pages`)."""

    missing: tuple[int, ...]
    pages: int | None


def ended_unrecorded(conn: Connection, *, limit: int = 20) -> tuple[Unrecorded, ...]:
    """Jobs of schedules that have ended and are to be recorded, the oldest first."""
    return tuple(Unrecorded(**row._mapping) for row in conn.execute(_ENDED, {"limit": limit}))


def unrecorded_of(conn: Connection, schedule_id: uuid.UUID, *, but: uuid.UUID) -> tuple[Unrecorded, ...]:
    """All jobs of the schedule that are not recorded to their end, running ones too, `but` one."""
    rows = conn.execute(_OF_SCHEDULE, {"schedule_id": schedule_id, "but": but})
    return tuple(Unrecorded(**row._mapping) for row in rows)


def record(conn: Connection, job: Unrecorded, start: int) -> int | None:
    """Write what succeeded among the items from `start` on, one window; where to go on, None after the last one.

    After the last window of an ended job it is recorded for good, and what was not listed for long is forgotten.
    """
    until = start + WINDOW
    if job.wanted:
        values = {"job_id": job.job_id, "schedule_id": job.schedule_id, "run_at": job.run_at}
        conn.execute(_RECORD, {**values, "start": start, "until": until})
    if job.wanted and until < job.item_count:
        return until
    if job.ended:
        conn.execute(_RECORDED, {"job_id": job.job_id})
        pruned = {"schedule_id": job.schedule_id, "run_at": job.run_at, "kept": KEPT, "limit": _PRUNED_A_RUN}
        conn.execute(_PRUNE, pruned)
    return None


def known(conn: Connection, schedule_id: uuid.UUID, media: Sequence[MediaRef]) -> dict[int, Known]:
    """Which of these listed objects an earlier run has done, by their place in `media`."""
    values = {
        "schedule_id": schedule_id,
        "urls": [clean_text(medium.url) for medium in media],
        "versions": [medium.version for medium in media],
        "touch": _LISTED_AGAIN,
    }
    rows = conn.execute(_KNOWN, values).all()
    stale = [row.object for row in rows if row.stale]
    if stale:
        conn.execute(_TOUCH, {"schedule_id": schedule_id, "objects": stale})
    return {int(row.n) - 1: Known(missing=tuple(row.missing), pages=row.pages) for row in rows}
