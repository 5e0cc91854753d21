"""The first schema.

Frozen: a later change is a later revision. `tests/integration/store/test_schema.py` holds what the revisions build and
what `pipelines.store.tables` describes together.

Revision ID: 0001
Revises:
"""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Partitions take storage parameters themselves. The default ones catch ids outside of every month (a wrong clock).
_PARTITIONS = """
CREATE TABLE documents_default PARTITION OF documents DEFAULT WITH (fillfactor = 90);
CREATE TABLE items_default PARTITION OF items DEFAULT WITH (fillfactor = 80);
CREATE TABLE results_default PARTITION OF results DEFAULT;
"""

_TABLES = """
CREATE TABLE documents (
    job_id UUID NOT NULL,
    doc BIGINT NOT NULL,
    tenant_id UUID NOT NULL,
    name TEXT NOT NULL,
    media JSONB NOT NULL,
    overrides JSONB DEFAULT '{}'::jsonb NOT NULL,
    metadata JSONB DEFAULT '{}'::jsonb NOT NULL,
    state TEXT NOT NULL,
    attempt INTEGER DEFAULT 0 NOT NULL,
    losses SMALLINT DEFAULT 0 NOT NULL,
    fails SMALLINT DEFAULT 0 NOT NULL,
    pages INTEGER,
    worker TEXT,
    lease_until TIMESTAMP WITH TIME ZONE,
    available_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    enqueued_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT documents_pkey PRIMARY KEY (job_id, doc),
    CONSTRAINT documents_state_check CHECK (state IN ('pending', 'leased', 'done', 'failed')),
    CONSTRAINT documents_lease_check CHECK ((state = 'leased') = (lease_until IS NOT NULL))
) PARTITION BY RANGE (job_id);
CREATE INDEX documents_claimable ON documents (job_id, doc) WHERE state = 'pending' AND enqueued_at IS NULL;
CREATE INDEX documents_enqueued ON documents (job_id, doc) WHERE state = 'pending' AND enqueued_at IS NOT NULL;
CREATE INDEX documents_leased ON documents (job_id, doc) WHERE state = 'leased';
CREATE INDEX documents_suspect ON documents (job_id, doc)
    WHERE losses > 0 AND state = 'pending' AND enqueued_at IS NULL;
COMMENT ON COLUMN documents.doc IS '0, 1, 2 … in the order of the source';
COMMENT ON COLUMN documents.name IS 'what the client knows it by: key, file name, manifest id';
COMMENT ON COLUMN documents.media IS 'list of {url, version, size}';
COMMENT ON COLUMN documents.overrides IS 'its own parameters';
COMMENT ON COLUMN documents.state IS 'done: its items exist; else it waits to be paged';

CREATE TABLE files (
    id UUID NOT NULL,
    tenant_id UUID NOT NULL,
    filename TEXT NOT NULL,
    purpose TEXT NOT NULL,
    blob_key TEXT NOT NULL,
    size BIGINT NOT NULL,
    sha256 TEXT NOT NULL,
    media_type TEXT NOT NULL,
    status TEXT DEFAULT 'uploaded' NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT files_pkey PRIMARY KEY (id),
    CONSTRAINT files_status_check CHECK (status IN ('pending', 'uploaded', 'processed', 'error'))
);
CREATE INDEX files_by_blob ON files (blob_key);
CREATE INDEX files_by_content ON files (tenant_id, sha256);
CREATE INDEX files_by_tenant ON files (tenant_id, id);
CREATE INDEX files_expiry ON files (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE idempotency_keys (
    tenant_id UUID NOT NULL,
    key TEXT NOT NULL,
    fingerprint BYTEA NOT NULL,
    status INTEGER,
    response JSONB,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT idempotency_keys_pkey PRIMARY KEY (tenant_id, key)
);
CREATE INDEX idempotency_keys_expiry ON idempotency_keys (expires_at);
COMMENT ON COLUMN idempotency_keys.fingerprint IS 'SHA-256 of method, path and canonical body';
COMMENT ON COLUMN idempotency_keys.status IS 'null while the request is in flight';

CREATE TABLE items (
    job_id UUID NOT NULL,
    seq BIGINT NOT NULL,
    tenant_id UUID NOT NULL,
    doc BIGINT NOT NULL,
    page INTEGER,
    state TEXT DEFAULT 'pending' NOT NULL,
    attempt INTEGER DEFAULT 0 NOT NULL,
    losses SMALLINT DEFAULT 0 NOT NULL,
    fails SMALLINT DEFAULT 0 NOT NULL,
    lease_until TIMESTAMP WITH TIME ZONE,
    worker TEXT,
    available_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    enqueued_at TIMESTAMP WITH TIME ZONE,
    pack_key TEXT,
    pack_sha256 TEXT,
    pack_bytes BIGINT,
    tiles INTEGER,
    media_hash TEXT,
    error_code TEXT,
    error_message TEXT,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    prepared_at TIMESTAMP WITH TIME ZONE,
    started_at TIMESTAMP WITH TIME ZONE,
    finished_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT items_pkey PRIMARY KEY (job_id, seq),
    CONSTRAINT items_state_check CHECK
        (state IN ('pending', 'preparing', 'ready', 'inferring', 'succeeded', 'failed', 'cancelled')),
    CONSTRAINT items_lease_check CHECK ((state IN ('preparing', 'inferring')) = (lease_until IS NOT NULL)),
    CONSTRAINT items_finished_check CHECK
        ((state IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)),
    CONSTRAINT items_failure_has_a_code_check CHECK ((state = 'failed') <= (error_code IS NOT NULL)),
    CONSTRAINT items_pack_check CHECK ((state IN ('ready', 'inferring', 'succeeded')) <= (pack_key IS NOT NULL))
) PARTITION BY RANGE (job_id);
CREATE INDEX items_enqueued ON items (job_id, seq) WHERE state IN ('pending', 'ready') AND enqueued_at IS NOT NULL;
CREATE INDEX items_leased ON items (job_id, seq) WHERE state IN ('preparing', 'inferring');
CREATE INDEX items_pending ON items (job_id, seq) WHERE state = 'pending' AND enqueued_at IS NULL;
CREATE INDEX items_ready ON items (job_id, seq) WHERE state = 'ready' AND enqueued_at IS NULL;
CREATE INDEX items_suspect ON items (job_id, seq)
    WHERE losses > 0 AND state IN ('pending', 'ready') AND enqueued_at IS NULL;
CREATE INDEX items_unsuccessful ON items (job_id, state, error_code, seq) WHERE state IN ('failed', 'cancelled');
COMMENT ON COLUMN items.page IS '0-based page of a document; null where the document is one item';
COMMENT ON COLUMN items.attempt IS 'fencing token: grows at each claim';
COMMENT ON COLUMN items.losses IS 'leases lost; the third fails it';
COMMENT ON COLUMN items.fails IS 'counted retries at this stage';

CREATE TABLE job_deltas (
    job_id UUID NOT NULL,
    succeeded INTEGER DEFAULT 0 NOT NULL,
    failed INTEGER DEFAULT 0 NOT NULL,
    cancelled INTEGER DEFAULT 0 NOT NULL,
    errors JSONB DEFAULT '{}'::jsonb NOT NULL,
    prompt_tokens BIGINT DEFAULT 0 NOT NULL,
    cached_tokens BIGINT DEFAULT 0 NOT NULL,
    completion_tokens BIGINT DEFAULT 0 NOT NULL,
    tiles BIGINT DEFAULT 0 NOT NULL,
    device_seconds DOUBLE PRECISION DEFAULT 0 NOT NULL
)
 WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
COMMENT ON COLUMN job_deltas.errors IS 'failed items by code';

CREATE TABLE job_progress (
    job_id UUID NOT NULL,
    tenant_id UUID NOT NULL,
    version BIGINT DEFAULT 1 NOT NULL,
    state TEXT NOT NULL,
    plan_state TEXT NOT NULL,
    item_count BIGINT DEFAULT 0 NOT NULL,
    counts JSONB DEFAULT '{}'::jsonb NOT NULL,
    errors JSONB DEFAULT '{}'::jsonb NOT NULL,
    usage JSONB DEFAULT '{}'::jsonb NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT job_progress_pkey PRIMARY KEY (job_id)
);
COMMENT ON COLUMN job_progress.version IS 'grows at each change: the ETag';
COMMENT ON COLUMN job_progress.errors IS 'failed items by code';

CREATE TABLE leader (
    name TEXT NOT NULL,
    holder TEXT NOT NULL,
    epoch BIGINT NOT NULL,
    lease_until TIMESTAMP WITH TIME ZONE NOT NULL,
    contact_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    losses_from TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT leader_pkey PRIMARY KEY (name)
);
COMMENT ON COLUMN leader.epoch IS 'grows at each change of holder; every write of the leader checks it';

CREATE TABLE packs (
    key TEXT NOT NULL,
    tenant_id UUID NOT NULL,
    sha256 TEXT NOT NULL,
    size BIGINT NOT NULL,
    tiles INTEGER NOT NULL,
    media_hash TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    used_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT packs_pkey PRIMARY KEY (key)
);
CREATE INDEX packs_used ON packs (used_at);
COMMENT ON COLUMN packs.key IS 'blob key; holds the tenant and the hash';
COMMENT ON COLUMN packs.sha256 IS 'of the blob';

CREATE TABLE results (
    job_id UUID NOT NULL,
    seq BIGINT NOT NULL,
    tenant_id UUID NOT NULL,
    attempt INTEGER NOT NULL,
    text TEXT NOT NULL,
    output JSONB NOT NULL,
    flags TEXT[] DEFAULT '{}'::text[] NOT NULL,
    finish_reason TEXT NOT NULL,
    media_hash TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    tiles INTEGER NOT NULL,
    device_seconds DOUBLE PRECISION NOT NULL,
    mean_logprob DOUBLE PRECISION,
    provenance JSONB NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT results_pkey PRIMARY KEY (job_id, seq)
) PARTITION BY RANGE (job_id);
COMMENT ON COLUMN results.attempt IS 'the attempt that made it; equals the item''s';

CREATE TABLE tenants (
    id UUID NOT NULL,
    name TEXT NOT NULL,
    weight DOUBLE PRECISION DEFAULT 1 NOT NULL,
    allowed_buckets TEXT[],
    max_active_items BIGINT DEFAULT 2000000 NOT NULL,
    max_stored_bytes BIGINT DEFAULT 1099511627776 NOT NULL,
    stored_bytes BIGINT DEFAULT 0 NOT NULL,
    requests_per_minute INTEGER,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    disabled_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT tenants_pkey PRIMARY KEY (id),
    CONSTRAINT tenants_weight_check CHECK (weight > 0),
    CONSTRAINT tenants_name_key UNIQUE (name)
);
COMMENT ON COLUMN tenants.allowed_buckets IS 'null: the installation''s own list';
COMMENT ON COLUMN tenants.requests_per_minute IS 'null: the installation''s own rate';

CREATE TABLE workers (
    id TEXT NOT NULL,
    role TEXT NOT NULL,
    slots INTEGER NOT NULL,
    engine JSONB DEFAULT '{}'::jsonb NOT NULL,
    stats JSONB DEFAULT '{}'::jsonb NOT NULL,
    draining BOOLEAN DEFAULT false NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    seen_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT workers_pkey PRIMARY KEY (id)
);

CREATE TABLE api_keys (
    id UUID NOT NULL,
    tenant_id UUID NOT NULL,
    name TEXT NOT NULL,
    prefix TEXT NOT NULL,
    digest BYTEA NOT NULL,
    scopes TEXT[] NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE,
    revoked_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT api_keys_pkey PRIMARY KEY (id),
    CONSTRAINT api_keys_tenant_id_fkey FOREIGN KEY(tenant_id) REFERENCES tenants (id),
    CONSTRAINT api_keys_prefix_key UNIQUE (prefix)
);
CREATE INDEX api_keys_tenant_id_idx ON api_keys (tenant_id);
COMMENT ON COLUMN api_keys.prefix IS 'public part, shown in lists';
COMMENT ON COLUMN api_keys.digest IS 'HMAC-SHA256 of the whole key under the server''s pepper';

CREATE TABLE jobs (
    id UUID NOT NULL,
    tenant_id UUID NOT NULL,
    kind TEXT NOT NULL,
    parameters JSONB NOT NULL,
    source JSONB NOT NULL,
    metadata JSONB DEFAULT '{}'::jsonb NOT NULL,
    priority SMALLINT NOT NULL,
    state TEXT DEFAULT 'queued' NOT NULL,
    parent_id UUID,
    item_count BIGINT DEFAULT 0 NOT NULL,
    document_count BIGINT DEFAULT 0 NOT NULL,
    plan_state TEXT DEFAULT 'pending' NOT NULL,
    plan_cursor JSONB,
    plan_attempt INTEGER DEFAULT 0 NOT NULL,
    plan_losses SMALLINT DEFAULT 0 NOT NULL,
    plan_fails SMALLINT DEFAULT 0 NOT NULL,
    plan_worker TEXT,
    plan_lease_until TIMESTAMP WITH TIME ZONE,
    plan_available_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    plan_enqueued_at TIMESTAMP WITH TIME ZONE,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE,
    finished_at TIMESTAMP WITH TIME ZONE,
    cancel_requested_at TIMESTAMP WITH TIME ZONE,
    deadline_at TIMESTAMP WITH TIME ZONE,
    error_code TEXT,
    error_message TEXT,
    CONSTRAINT jobs_pkey PRIMARY KEY (id),
    CONSTRAINT jobs_state_check CHECK
        (state IN ('queued', 'planning', 'running', 'succeeded', 'partial', 'failed', 'cancelled')),
    CONSTRAINT jobs_plan_state_check CHECK (plan_state IN ('pending', 'leased', 'done', 'failed')),
    CONSTRAINT jobs_plan_lease_check CHECK ((plan_state = 'leased') = (plan_lease_until IS NOT NULL)),
    CONSTRAINT jobs_finished_check CHECK
        ((state IN ('succeeded', 'partial', 'failed', 'cancelled')) = (finished_at IS NOT NULL)),
    CONSTRAINT jobs_tenant_id_fkey FOREIGN KEY(tenant_id) REFERENCES tenants (id)
);
CREATE INDEX jobs_active ON jobs (tenant_id, priority, id) WHERE state IN ('queued', 'planning', 'running');
CREATE INDEX jobs_by_tenant ON jobs (tenant_id, id);
CREATE INDEX jobs_metadata ON jobs USING gin (metadata jsonb_path_ops);
CREATE INDEX jobs_parent ON jobs (parent_id) WHERE parent_id IS NOT NULL;
COMMENT ON COLUMN jobs.parent_id IS 'the job whose failed items this one runs again';
COMMENT ON COLUMN jobs.item_count IS 'items planned; the next seq';
COMMENT ON COLUMN jobs.document_count IS 'documents; the next doc';
COMMENT ON COLUMN jobs.plan_cursor IS 'where the listing goes on; null: at its start';
"""

_DROP = """
DROP TABLE api_keys, documents, files, idempotency_keys, items, job_deltas, job_progress, jobs, leader, packs, results,
    tenants, workers;
"""


def upgrade() -> None:
    """Create every table, index and default partition."""
    op.get_bind().exec_driver_sql(_TABLES)
    op.get_bind().exec_driver_sql(_PARTITIONS)


def downgrade() -> None:
    """Drop everything that `upgrade` made, and the months' partitions with their tables."""
    op.get_bind().exec_driver_sql(_DROP)
