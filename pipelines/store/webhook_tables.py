"""The tables of webhooks: endpoints and their secrets, events, deliveries and their attempts, batches that wait.

Secrets are stored as they are: HMAC needs them, so a hash would not do. Encrypting them was rejected: the key would lie
in the environment of the same processes that hold the database's password, so whoever reads one reads both, and a lost
key would silence every endpoint. A secret only proves to a receiver that an event is ours; whoever reads this database
reads the results themselves. They are shown once, at creation and at rotation, and never logged.
"""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    PrimaryKeyConstraint,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY

from pipelines.store.columns import metadata, timestamp

webhook_endpoints = Table(
    "webhook_endpoints",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", Uuid, ForeignKey("tenants.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("event_types", ARRAY(Text), nullable=False, comment="`*`: all; none: only jobs that name the endpoint"),
    timestamp("created_at", nullable=False, now=True),
    timestamp("updated_at", nullable=False, now=True),
    timestamp("disabled_at"),
    Column("disabled_reason", Text),
    timestamp("deleted_at"),
    CheckConstraint("(disabled_at IS NULL) = (disabled_reason IS NULL)", name="disabled"),
    Index("webhook_endpoints_by_tenant", "tenant_id", "id"),
)

webhook_secrets = Table(
    "webhook_secrets",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("endpoint_id", Uuid, ForeignKey("webhook_endpoints.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("secret", Text, nullable=False),
    timestamp("created_at", nullable=False, now=True),
    timestamp("expires_at"),
    Index("webhook_secrets_current", "endpoint_id", unique=True, postgresql_where=text("expires_at IS NULL")),
)

webhook_events = Table(
    "webhook_events",
    metadata,
    Column("id", Uuid, primary_key=True, comment="follows from the job whose end it tells of, so there is one"),
    Column("tenant_id", Uuid, nullable=False),
    Column("type", Text, nullable=False),
    Column("job_id", Uuid),
    Column("body", Text, nullable=False, comment="the JSON as it is sent, alike at every attempt"),
    timestamp("created_at", nullable=False, now=True),
    Index("webhook_events_age", "created_at"),
)

webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", Uuid, nullable=False),
    Column("endpoint_id", Uuid, nullable=False),
    Column("event_id", Uuid, nullable=False),
    Column("state", Text, nullable=False, server_default=text("'pending'")),
    Column("attempt", Integer, nullable=False, server_default=text("0"), comment="fencing token: grows at each claim"),
    Column("once", Boolean, nullable=False, server_default=text("false"), comment="a test: not tried again"),
    timestamp("next_at", nullable=False, now=True),
    timestamp("lease_until"),
    Column("last_status", Integer),
    Column("last_error", Text),
    timestamp("created_at", nullable=False, now=True),
    timestamp("finished_at"),
    CheckConstraint("state IN ('pending', 'sending', 'succeeded', 'failed')", name="state"),
    CheckConstraint("(state = 'sending') = (lease_until IS NOT NULL)", name="lease"),
    CheckConstraint("(state IN ('succeeded', 'failed')) = (finished_at IS NOT NULL)", name="finished"),
    Index("webhook_deliveries_due", "endpoint_id", "next_at", postgresql_where=text("state = 'pending'")),
    Index("webhook_deliveries_sending", "endpoint_id", postgresql_where=text("state = 'sending'")),
    Index("webhook_deliveries_by_endpoint", "endpoint_id", "id"),
    Index("webhook_deliveries_by_event", "event_id"),
)

webhook_attempts = Table(
    "webhook_attempts",
    metadata,
    Column("delivery_id", Uuid, nullable=False),
    Column("attempt", Integer, nullable=False),
    timestamp("started_at", nullable=False, now=True),
    timestamp("ended_at"),
    Column("status", Integer),
    Column("error", Text, comment="null with an end: it was taken; null without: the sender died, who knows"),
    Column("answer", Text, comment="how the answer begins"),
    PrimaryKeyConstraint("delivery_id", "attempt"),
)

batch_endings = Table(
    "batch_endings",
    metadata,
    Column("job_id", Uuid, primary_key=True),
    Column("tenant_id", Uuid, nullable=False),
    Column("event_id", Uuid, comment="sent once the files are written; null: ended before there were events"),
    Column("attempt", Integer, nullable=False, server_default=text("0"), comment="fencing token: grows at each claim"),
    timestamp("lease_until"),
    timestamp("created_at", nullable=False, now=True),
)
