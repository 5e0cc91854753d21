"""The tables of schedules. See `pipelines.store.tables`.

**Why `schedule_objects`.** A run with `only_new` leaves out what an earlier run has done. That could be read from the
items of the earlier jobs, but retention drops those by the month while the objects stay in their bucket, and asking
all former jobs about a million listed keys is no cheap query. So one row an object is kept, written from the items of
a run's job in batches, inside the database: when the job has ended, by the leader; and by every planner before it
lists, for whatever is not written yet. The row holds the version that was done, and for a document of which some pages
failed, those pages: they alone are done again. Writing is set arithmetic (pages that are missing shrink, a newer run's
version replaces an older one's), so it may be repeated and interleaved at will.

**Its bound.** One row an object that the schedule's runs have listed within `schedule_objects.KEPT` days: a year and
more, so that a folder a month that comes round next year is remembered, and folders a day do not pile up for ever.
"""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from pipelines.jobs.schedules import CatchUp, Overlap, RunState, RunTrigger
from pipelines.store.columns import metadata, one_of, timestamp

schedules = Table(
    "schedules",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", Uuid, ForeignKey("tenants.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("cron", Text, nullable=False),
    Column("timezone", Text, nullable=False),
    Column("template", JSONB, nullable=False, comment="the job of each run; its URLs may hold dates to be filled in"),
    Column("overlap", Text, nullable=False),
    Column("catch_up", Text, nullable=False),
    Column("catch_up_limit", Integer, nullable=False),
    Column("misfire_grace", Double, nullable=False, comment="seconds"),
    Column("only_new", Boolean, nullable=False),
    timestamp("next_at"),
    timestamp("paused_at"),
    timestamp("deleted_at"),
    timestamp("created_at", nullable=False, now=True),
    timestamp("updated_at", nullable=False, now=True),
    CheckConstraint(one_of("overlap", Overlap), name="overlap"),
    CheckConstraint(one_of("catch_up", CatchUp), name="catch_up"),
    CheckConstraint("next_at IS NULL OR paused_at IS NULL AND deleted_at IS NULL", name="next"),
    Index("schedules_by_tenant", "tenant_id", "id"),
    Index("schedules_by_name", "tenant_id", "name", unique=True, postgresql_where=text("deleted_at IS NULL")),
    Index("schedules_due", "next_at", postgresql_where=text("next_at IS NOT NULL")),
    Index("schedules_deleted", "id", postgresql_where=text("deleted_at IS NOT NULL")),
)

schedule_runs = Table(
    "schedule_runs",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("schedule_id", Uuid, ForeignKey("schedules.id"), nullable=False),
    Column("tenant_id", Uuid, nullable=False),
    Column("trigger", Text, nullable=False),
    timestamp("scheduled_at", nullable=False),
    timestamp("fired_at", nullable=False, now=True),
    Column("state", Text, nullable=False),
    Column("only_new", Boolean, nullable=False),
    Column("job_id", Uuid),
    Column("error_code", Text),
    Column("error_message", Text),
    CheckConstraint(one_of("trigger", RunTrigger), name="trigger"),
    CheckConstraint(one_of("state", RunState), name="state"),
    CheckConstraint("(state = 'fired') = (job_id IS NOT NULL)", name="job"),
    CheckConstraint("(state = 'failed') <= (error_code IS NOT NULL)", name="failure_has_a_code"),
    Index("schedule_runs_by_schedule", "schedule_id", "id"),
    # Two leaders, or one after a crash, cannot fire a time twice.
    Index(
        "schedule_runs_once",
        "schedule_id",
        "scheduled_at",
        unique=True,
        postgresql_where=text("trigger = 'cron'"),
    ),
)

schedule_objects = Table(
    "schedule_objects",
    metadata,
    Column("schedule_id", Uuid, nullable=False),
    Column("object", LargeBinary, nullable=False, comment="SHA-256 of its URL"),
    Column("version", Text, nullable=False, comment="that was done, as it was pinned"),
    Column("missing", ARRAY(Integer), nullable=False, comment="pages of it that no run has done yet; empty: none"),
    Column("pages", Integer, comment="how many it has; null: it is one item"),
    timestamp("run_at", nullable=False),
    timestamp("listed_at", nullable=False, now=True),
    PrimaryKeyConstraint("schedule_id", "object"),
)
