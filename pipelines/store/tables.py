"""The tables, as SQLAlchemy Core describes them. Migrations build them; a test holds both alike, to the last index.

- `items`, `results` and `documents` are range-partitioned by `job_id` (UUIDv7: a range of ids is a range of time), so
  that retention drops partitions instead of deleting rows. `pipelines.store.partitions` keeps them ahead of time.
- Every unfinished item stands in exactly one of four partial indexes (`pending`, `ready`, `enqueued`, `leased`), so a
  change of state costs one index entry beside the key, and every pick, sweep and count reads only the rows it wants.
  No index holds `lease_until`: a heartbeat stays on its page (HOT, with the partitions' fillfactor of 80), and the
  sweep reads the few leased rows. Waiting items that lost a lease stand in a fifth, `suspect`. `documents` is alike.
- A row of `items` is claimable where it is `pending` or `ready`, `enqueued_at` is null and `available_at` has come.
- `job_deltas` is append-only: each statement that ends items adds one row a job, and the leader folds them (deletes and
  adds up) into `job_progress`. No counter row is contended, and a snapshot costs what happened since the last one, not
  what the job holds.
- Exports stand in `pipelines.store.export_tables`.
- Postgres' `now()` is the only clock.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from pipelines.jobs.states import ItemState, JobState, PlanState
from pipelines.store.columns import EMPTY, metadata, one_of, timestamp
from pipelines.store.export_tables import export_shards, exports
from pipelines.store.schedule_tables import schedule_objects, schedule_runs, schedules
from pipelines.store.shared_tables import files, idempotency_keys, leader, packs, workers
from pipelines.store.webhook_tables import (
    batch_endings,
    webhook_attempts,
    webhook_deliveries,
    webhook_endpoints,
    webhook_events,
    webhook_secrets,
)

__all__ = [
    "PARTITIONED",
    "api_keys",
    "batch_endings",
    "documents",
    "export_shards",
    "exports",
    "files",
    "idempotency_keys",
    "items",
    "job_deltas",
    "job_progress",
    "jobs",
    "leader",
    "metadata",
    "packs",
    "results",
    "schedule_objects",
    "schedule_runs",
    "schedules",
    "tenants",
    "webhook_attempts",
    "webhook_deliveries",
    "webhook_endpoints",
    "webhook_events",
    "webhook_secrets",
    "workers",
]

PARTITIONED = ("documents", "items", "results")
"""Tables that are range-partitioned by job_id."""

tenants = Table(
    "tenants",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("weight", Double, nullable=False, server_default=text("1")),
    Column("allowed_buckets", ARRAY(Text), comment="null: the installation's own list"),
    Column("export_buckets", ARRAY(Text), comment="null: the installation's own list"),
    Column("max_active_items", BigInteger, nullable=False, server_default=text("2000000")),
    Column("max_stored_bytes", BigInteger, nullable=False, server_default=text("1099511627776")),
    Column("stored_bytes", BigInteger, nullable=False, server_default=text("0")),
    Column("requests_per_minute", Integer, comment="null: the installation's own rate"),
    timestamp("created_at", nullable=False, now=True),
    timestamp("disabled_at"),
    CheckConstraint("weight > 0", name="weight"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", Uuid, ForeignKey("tenants.id"), nullable=False, index=True),
    Column("name", Text, nullable=False),
    Column("prefix", Text, nullable=False, unique=True, comment="public part, shown in lists"),
    Column("digest", LargeBinary, nullable=False, comment="HMAC-SHA256 of the whole key under the server's pepper"),
    Column("scopes", ARRAY(Text), nullable=False),
    timestamp("created_at", nullable=False, now=True),
    timestamp("expires_at"),
    timestamp("revoked_at"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", Uuid, ForeignKey("tenants.id"), nullable=False),
    Column("kind", Text, nullable=False),
    Column("parameters", JSONB, nullable=False),
    Column("source", JSONB, nullable=False),
    Column("metadata", JSONB, nullable=False, server_default=EMPTY),
    Column("priority", SmallInteger, nullable=False),
    Column("state", Text, nullable=False, server_default=text("'queued'")),
    Column("parent_id", Uuid, comment="the job whose failed items this one runs again"),
    Column("webhook_endpoint_id", Uuid, comment="told of the end whatever it subscribes to"),
    Column("item_count", BigInteger, nullable=False, server_default=text("0"), comment="items planned; the next seq"),
    Column("document_count", BigInteger, nullable=False, server_default=text("0"), comment="documents; the next doc"),
    Column("plan_state", Text, nullable=False, server_default=text("'pending'")),
    Column("plan_cursor", JSONB, comment="where the listing goes on; null: at its start"),
    Column("plan_attempt", Integer, nullable=False, server_default=text("0")),
    Column("plan_losses", SmallInteger, nullable=False, server_default=text("0")),
    Column("plan_fails", SmallInteger, nullable=False, server_default=text("0")),
    Column("plan_worker", Text),
    timestamp("plan_lease_until"),
    timestamp("plan_available_at", nullable=False, now=True),
    timestamp("plan_enqueued_at"),
    timestamp("created_at", nullable=False, now=True),
    timestamp("started_at"),
    timestamp("finished_at"),
    timestamp("cancel_requested_at"),
    timestamp("deadline_at"),
    Column("error_code", Text),
    Column("error_message", Text),
    Column("schedule_id", Uuid, comment="the schedule it is a run of, or a redrive of a run"),
    Column("schedule_run_id", Uuid),
    timestamp("objects_recorded_at"),
    CheckConstraint(one_of("state", JobState), name="state"),
    CheckConstraint(one_of("plan_state", PlanState), name="plan_state"),
    CheckConstraint("(plan_state = 'leased') = (plan_lease_until IS NOT NULL)", name="plan_lease"),
    CheckConstraint(
        "(state IN ('succeeded', 'partial', 'failed', 'cancelled')) = (finished_at IS NOT NULL)", name="finished"
    ),
    Index("jobs_by_tenant", "tenant_id", "id"),
    Index(
        "jobs_active",
        "tenant_id",
        "priority",
        "id",
        postgresql_where=text("state IN ('queued', 'planning', 'running')"),
    ),
    Index("jobs_metadata", "metadata", postgresql_using="gin", postgresql_ops={"metadata": "jsonb_path_ops"}),
    Index("jobs_parent", "parent_id", postgresql_where=text("parent_id IS NOT NULL")),
    Index("jobs_by_schedule", "schedule_id", "id", postgresql_where=text("schedule_id IS NOT NULL")),
    Index(
        "jobs_unrecorded",
        "schedule_id",
        "id",
        postgresql_where=text("schedule_id IS NOT NULL AND objects_recorded_at IS NULL"),
    ),
)

documents = Table(
    "documents",
    metadata,
    Column("job_id", Uuid, nullable=False),
    Column("doc", BigInteger, nullable=False, comment="0, 1, 2 … in the order of the source"),
    Column("tenant_id", Uuid, nullable=False),
    Column("name", Text, nullable=False, comment="what the client knows it by: key, file name, manifest id"),
    Column("media", JSONB, nullable=False, comment="list of {url, version, size}"),
    Column("overrides", JSONB, nullable=False, server_default=EMPTY, comment="its own parameters"),
    Column("metadata", JSONB, nullable=False, server_default=EMPTY),
    Column("state", Text, nullable=False, comment="done: its items exist; else it waits to be paged"),
    Column("attempt", Integer, nullable=False, server_default=text("0")),
    Column("losses", SmallInteger, nullable=False, server_default=text("0")),
    Column("fails", SmallInteger, nullable=False, server_default=text("0")),
    Column("pages", Integer),
    Column("worker", Text),
    timestamp("lease_until"),
    timestamp("available_at", nullable=False, now=True),
    timestamp("enqueued_at"),
    PrimaryKeyConstraint("job_id", "doc"),
    CheckConstraint(one_of("state", PlanState), name="state"),
    CheckConstraint("(state = 'leased') = (lease_until IS NOT NULL)", name="lease"),
    Index(
        "documents_claimable",
        "job_id",
        "doc",
        postgresql_where=text("state = 'pending' AND enqueued_at IS NULL"),
    ),
    Index(
        "documents_enqueued",
        "job_id",
        "doc",
        postgresql_where=text("state = 'pending' AND enqueued_at IS NOT NULL"),
    ),
    Index("documents_leased", "job_id", "doc", postgresql_where=text("state = 'leased'")),
    Index(
        "documents_suspect",
        "job_id",
        "doc",
        postgresql_where=text("losses > 0 AND state = 'pending' AND enqueued_at IS NULL"),
    ),
    postgresql_partition_by="RANGE (job_id)",
)

items = Table(
    "items",
    metadata,
    Column("job_id", Uuid, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("tenant_id", Uuid, nullable=False),
    Column("doc", BigInteger, nullable=False),
    Column("page", Integer, comment="0-based page of a document; null where the document is one item"),
    Column("state", Text, nullable=False, server_default=text("'pending'")),
    Column("attempt", Integer, nullable=False, server_default=text("0"), comment="fencing token: grows at each claim"),
    Column("losses", SmallInteger, nullable=False, server_default=text("0"), comment="leases lost; the third fails it"),
    Column("fails", SmallInteger, nullable=False, server_default=text("0"), comment="counted retries at this stage"),
    timestamp("lease_until"),
    Column("worker", Text),
    timestamp("available_at", nullable=False, now=True),
    timestamp("enqueued_at"),
    Column("pack_key", Text),
    Column("pack_sha256", Text),
    Column("pack_bytes", BigInteger),
    Column("tiles", Integer),
    Column("media_hash", Text),
    Column("error_code", Text),
    Column("error_message", Text),
    timestamp("created_at", nullable=False, now=True),
    timestamp("prepared_at"),
    timestamp("started_at"),
    timestamp("finished_at"),
    PrimaryKeyConstraint("job_id", "seq"),
    CheckConstraint(one_of("state", ItemState), name="state"),
    CheckConstraint("(state IN ('preparing', 'inferring')) = (lease_until IS NOT NULL)", name="lease"),
    CheckConstraint("(state IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)", name="finished"),
    CheckConstraint("(state = 'failed') <= (error_code IS NOT NULL)", name="failure_has_a_code"),
    CheckConstraint("(state IN ('ready', 'inferring', 'succeeded')) <= (pack_key IS NOT NULL)", name="pack"),
    Index(
        "items_pending",
        "job_id",
        "seq",
        postgresql_where=text("state = 'pending' AND enqueued_at IS NULL"),
    ),
    Index(
        "items_ready",
        "job_id",
        "seq",
        postgresql_where=text("state = 'ready' AND enqueued_at IS NULL"),
    ),
    Index(
        "items_enqueued",
        "job_id",
        "seq",
        postgresql_where=text("state IN ('pending', 'ready') AND enqueued_at IS NOT NULL"),
    ),
    Index("items_leased", "job_id", "seq", postgresql_where=text("state IN ('preparing', 'inferring')")),
    Index(
        "items_suspect",
        "job_id",
        "seq",
        postgresql_where=text("losses > 0 AND state IN ('pending', 'ready') AND enqueued_at IS NULL"),
    ),
    Index(
        "items_unsuccessful",
        "job_id",
        "state",
        "error_code",
        "seq",
        postgresql_where=text("state IN ('failed', 'cancelled')"),
    ),
    postgresql_partition_by="RANGE (job_id)",
)

results = Table(
    "results",
    metadata,
    Column("job_id", Uuid, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("tenant_id", Uuid, nullable=False),
    Column("attempt", Integer, nullable=False, comment="the attempt that made it; equals the item's"),
    Column("text", Text, nullable=False),
    Column("output", JSONB, nullable=False),
    Column("flags", ARRAY(Text), nullable=False, server_default=text("'{}'::text[]")),
    Column("finish_reason", Text, nullable=False),
    Column("media_hash", Text, nullable=False),
    Column("prompt_tokens", Integer, nullable=False),
    Column("cached_tokens", Integer, nullable=False),
    Column("completion_tokens", Integer, nullable=False),
    Column("tiles", Integer, nullable=False),
    Column("device_seconds", Double, nullable=False),
    Column("mean_logprob", Double),
    Column("provenance", JSONB, nullable=False),
    timestamp("created_at", nullable=False, now=True),
    PrimaryKeyConstraint("job_id", "seq"),
    Index(
        "results_answers",
        "tenant_id",
        text("(provenance->>'answer_key')"),
        postgresql_where=text("(provenance->>'answer_key') IS NOT NULL"),
    ),
    postgresql_partition_by="RANGE (job_id)",
)

job_deltas = Table(
    "job_deltas",
    metadata,
    Column("job_id", Uuid, nullable=False),
    Column("succeeded", Integer, nullable=False, server_default=text("0")),
    Column("failed", Integer, nullable=False, server_default=text("0")),
    Column("cancelled", Integer, nullable=False, server_default=text("0")),
    Column("errors", JSONB, nullable=False, server_default=EMPTY, comment="failed items by code"),
    Column("prompt_tokens", BigInteger, nullable=False, server_default=text("0")),
    Column("cached_tokens", BigInteger, nullable=False, server_default=text("0")),
    Column("completion_tokens", BigInteger, nullable=False, server_default=text("0")),
    Column("tiles", BigInteger, nullable=False, server_default=text("0")),
    Column("device_seconds", Double, nullable=False, server_default=text("0")),
    # Rows live for a second at most: the leader deletes what it folds, so the table is vacuumed by count, not by share.
    postgresql_with={"autovacuum_vacuum_scale_factor": 0, "autovacuum_vacuum_threshold": 2000},
)

job_progress = Table(
    "job_progress",
    metadata,
    Column("job_id", Uuid, primary_key=True),
    Column("tenant_id", Uuid, nullable=False),
    Column("version", BigInteger, nullable=False, server_default=text("1"), comment="grows at each change: the ETag"),
    Column("state", Text, nullable=False),
    Column("plan_state", Text, nullable=False),
    Column("item_count", BigInteger, nullable=False, server_default=text("0")),
    Column("counts", JSONB, nullable=False, server_default=EMPTY),
    Column("errors", JSONB, nullable=False, server_default=EMPTY, comment="failed items by code"),
    Column("usage", JSONB, nullable=False, server_default=EMPTY),
    timestamp("updated_at", nullable=False, now=True),
)
