"""The tables of exports. See `pipelines.store.exports`."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from pipelines.jobs.states import ExportState
from pipelines.store.columns import metadata, one_of, timestamp

ZERO = text("0")

exports = Table(
    "exports",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", Uuid, nullable=False),
    Column("job_id", Uuid, nullable=False),
    Column("url", Text, comment="null: the installation's own store"),
    Column("options", JSONB, nullable=False),
    Column("state", Text, nullable=False),
    Column("cursor", JSONB, comment="behind the last committed shard; null: at the start"),
    Column("shards", Integer, nullable=False, server_default=ZERO),
    Column("rows", BigInteger, nullable=False, server_default=ZERO, comment="results written"),
    Column("errors", BigInteger, nullable=False, server_default=ZERO, comment="items written that have no result"),
    Column("bytes", BigInteger, nullable=False, server_default=ZERO),
    Column("attempt", Integer, nullable=False, server_default=ZERO, comment="fencing token: grows at each claim"),
    Column("losses", SmallInteger, nullable=False, server_default=ZERO, comment="leases lost since the last shard"),
    Column("fails", SmallInteger, nullable=False, server_default=ZERO, comment="counted retries of the next shard"),
    Column("worker", Text),
    timestamp("lease_until"),
    timestamp("available_at", nullable=False, now=True),
    timestamp("enqueued_at"),
    timestamp("created_at", nullable=False, now=True),
    timestamp("started_at"),
    timestamp("finished_at"),
    Column("error_code", Text),
    Column("error_message", Text),
    CheckConstraint(one_of("state", ExportState), name="state"),
    CheckConstraint("(state = 'running') = (lease_until IS NOT NULL)", name="lease"),
    CheckConstraint("(state IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)", name="finished"),
    CheckConstraint("(state = 'failed') <= (error_code IS NOT NULL)", name="failure_has_a_code"),
    Index("exports_by_job", "job_id", "id"),
    Index("exports_waiting", "job_id", postgresql_where=text("state = 'waiting'")),
    Index("exports_unfinished", "id", postgresql_where=text("state IN ('pending', 'running')")),
    Index("exports_finished", "finished_at", postgresql_where=text("finished_at IS NOT NULL")),
)

export_shards = Table(
    "export_shards",
    metadata,
    Column("export_id", Uuid, ForeignKey("exports.id", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("content", Text, nullable=False, comment="results, errors, or files (an index of them)"),
    Column("name", Text, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("first_seq", BigInteger, nullable=False),
    Column("last_seq", BigInteger, nullable=False),
    PrimaryKeyConstraint("export_id", "number", "content"),
)
