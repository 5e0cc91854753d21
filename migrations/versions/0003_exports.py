"""Exports of results: what was asked for, how far each is, the shards that lie at its target.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_UP = """
CREATE TABLE exports (
    id UUID NOT NULL,
    tenant_id UUID NOT NULL,
    job_id UUID NOT NULL,
    url TEXT,
    options JSONB NOT NULL,
    state TEXT NOT NULL,
    cursor JSONB,
    shards INTEGER DEFAULT 0 NOT NULL,
    rows BIGINT DEFAULT 0 NOT NULL,
    errors BIGINT DEFAULT 0 NOT NULL,
    bytes BIGINT DEFAULT 0 NOT NULL,
    attempt INTEGER DEFAULT 0 NOT NULL,
    losses SMALLINT DEFAULT 0 NOT NULL,
    fails SMALLINT DEFAULT 0 NOT NULL,
    worker TEXT,
    lease_until TIMESTAMP WITH TIME ZONE,
    available_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    enqueued_at TIMESTAMP WITH TIME ZONE,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE,
    finished_at TIMESTAMP WITH TIME ZONE,
    error_code TEXT,
    error_message TEXT,
    CONSTRAINT exports_pkey PRIMARY KEY (id),
    CONSTRAINT exports_state_check CHECK
        (state IN ('waiting', 'pending', 'running', 'succeeded', 'failed', 'cancelled')),
    CONSTRAINT exports_lease_check CHECK ((state = 'running') = (lease_until IS NOT NULL)),
    CONSTRAINT exports_finished_check CHECK
        ((state IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)),
    CONSTRAINT exports_failure_has_a_code_check CHECK ((state = 'failed') <= (error_code IS NOT NULL))
);
CREATE INDEX exports_by_job ON exports (job_id, id);
CREATE INDEX exports_waiting ON exports (job_id) WHERE state = 'waiting';
CREATE INDEX exports_unfinished ON exports (id) WHERE state IN ('pending', 'running');
CREATE INDEX exports_finished ON exports (finished_at) WHERE finished_at IS NOT NULL;
COMMENT ON COLUMN exports.url IS 'null: the installation''s own store';
COMMENT ON COLUMN exports.cursor IS 'behind the last committed shard; null: at the start';
COMMENT ON COLUMN exports.rows IS 'results written';
COMMENT ON COLUMN exports.errors IS 'items written that have no result';
COMMENT ON COLUMN exports.attempt IS 'fencing token: grows at each claim';
COMMENT ON COLUMN exports.losses IS 'leases lost since the last shard';
COMMENT ON COLUMN exports.fails IS 'counted retries of the next shard';

CREATE TABLE export_shards (
    export_id UUID NOT NULL,
    number INTEGER NOT NULL,
    content TEXT NOT NULL,
    name TEXT NOT NULL,
    rows BIGINT NOT NULL,
    bytes BIGINT NOT NULL,
    sha256 TEXT NOT NULL,
    first_seq BIGINT NOT NULL,
    last_seq BIGINT NOT NULL,
    CONSTRAINT export_shards_pkey PRIMARY KEY (export_id, number, content),
    CONSTRAINT export_shards_export_id_fkey FOREIGN KEY(export_id) REFERENCES exports (id) ON DELETE CASCADE
);
COMMENT ON COLUMN export_shards.content IS 'results, errors, or files (an index of them)';

ALTER TABLE tenants ADD COLUMN export_buckets TEXT[];
COMMENT ON COLUMN tenants.export_buckets IS 'null: the installation''s own list';
"""

_DOWN = """
ALTER TABLE tenants DROP COLUMN export_buckets;
DROP TABLE export_shards;
DROP TABLE exports;
"""


def upgrade() -> None:
    """Create both tables, and the tenants' list."""
    op.get_bind().exec_driver_sql(_UP)


def downgrade() -> None:
    """Drop them."""
    op.get_bind().exec_driver_sql(_DOWN)
