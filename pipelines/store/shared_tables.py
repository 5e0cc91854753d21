"""The tables beside the path of a job: what is remembered, kept and led. See `pipelines.store.tables`."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from pipelines.store.columns import EMPTY, metadata, timestamp

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("key", Text, nullable=False),
    Column("fingerprint", LargeBinary, nullable=False, comment="SHA-256 of method, path and canonical body"),
    Column("status", Integer, comment="null while the request is in flight"),
    Column("response", JSONB),
    timestamp("created_at", nullable=False, now=True),
    timestamp("expires_at", nullable=False),
    PrimaryKeyConstraint("tenant_id", "key"),
    Index("idempotency_keys_expiry", "expires_at"),
)

packs = Table(
    "packs",
    metadata,
    Column("key", Text, primary_key=True, comment="blob key; holds the tenant and the hash"),
    Column("tenant_id", Uuid, nullable=False),
    Column("sha256", Text, nullable=False, comment="of the blob"),
    Column("size", BigInteger, nullable=False),
    Column("tiles", Integer, nullable=False),
    Column("media_hash", Text, nullable=False),
    timestamp("created_at", nullable=False, now=True),
    timestamp("used_at", nullable=False, now=True),
    Column("data", LargeBinary, comment="the pack itself, where it is small; null: it is a blob"),
    Index("packs_used", "used_at"),
)

files = Table(
    "files",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", Uuid, nullable=False),
    Column("filename", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("blob_key", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("media_type", Text, nullable=False),
    Column("status", Text, nullable=False, server_default=text("'uploaded'")),
    timestamp("created_at", nullable=False, now=True),
    timestamp("expires_at"),
    Index("files_by_tenant", "tenant_id", "id"),
    Index("files_by_content", "tenant_id", "sha256"),
    Index("files_by_blob", "blob_key"),
    Index("files_expiry", "expires_at", postgresql_where=text("expires_at IS NOT NULL")),
    CheckConstraint("status IN ('pending', 'uploaded', 'processed', 'error')", name="status"),
)

leader = Table(
    "leader",
    metadata,
    Column("name", Text, primary_key=True),
    Column("holder", Text, nullable=False),
    Column(
        "epoch",
        BigInteger,
        nullable=False,
        comment="grows at each change of holder; every write of the leader checks it",
    ),
    timestamp("lease_until", nullable=False),
    timestamp("contact_at", nullable=False, now=True),
    timestamp("losses_from", nullable=False, now=True),
)

workers = Table(
    "workers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("role", Text, nullable=False),
    Column("slots", Integer, nullable=False),
    Column("engine", JSONB, nullable=False, server_default=EMPTY),
    Column("stats", JSONB, nullable=False, server_default=EMPTY),
    Column("draining", Boolean, nullable=False, server_default=text("false")),
    timestamp("started_at", nullable=False, now=True),
    timestamp("seen_at", nullable=False, now=True),
)
