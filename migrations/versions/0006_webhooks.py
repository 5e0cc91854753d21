"""Webhooks: endpoints, secrets, events, deliveries, attempts; batches whose files are to be written.

Frozen: a later change is a later revision.

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_TABLES = """
CREATE TABLE webhook_endpoints (
    id UUID NOT NULL,
    tenant_id UUID NOT NULL,
    name TEXT NOT NULL,
    url TEXT NOT NULL,
    event_types TEXT[] NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    disabled_at TIMESTAMP WITH TIME ZONE,
    disabled_reason TEXT,
    deleted_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT webhook_endpoints_pkey PRIMARY KEY (id),
    CONSTRAINT webhook_endpoints_disabled_check CHECK ((disabled_at IS NULL) = (disabled_reason IS NULL)),
    CONSTRAINT webhook_endpoints_tenant_id_fkey FOREIGN KEY(tenant_id) REFERENCES tenants (id)
);
CREATE INDEX webhook_endpoints_by_tenant ON webhook_endpoints (tenant_id, id);
COMMENT ON COLUMN webhook_endpoints.event_types IS '`*`: all; none: only jobs that name the endpoint';

CREATE TABLE webhook_secrets (
    id UUID NOT NULL,
    endpoint_id UUID NOT NULL,
    secret TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT webhook_secrets_pkey PRIMARY KEY (id),
    CONSTRAINT webhook_secrets_endpoint_id_fkey FOREIGN KEY(endpoint_id)
        REFERENCES webhook_endpoints (id) ON DELETE CASCADE
);
CREATE UNIQUE INDEX webhook_secrets_current ON webhook_secrets (endpoint_id) WHERE expires_at IS NULL;
CREATE INDEX webhook_secrets_endpoint_id_idx ON webhook_secrets (endpoint_id);

CREATE TABLE webhook_events (
    id UUID NOT NULL,
    tenant_id UUID NOT NULL,
    type TEXT NOT NULL,
    job_id UUID,
    body TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT webhook_events_pkey PRIMARY KEY (id)
);
CREATE INDEX webhook_events_age ON webhook_events (created_at);
COMMENT ON COLUMN webhook_events.id IS 'follows from the job whose end it tells of, so there is one';
COMMENT ON COLUMN webhook_events.body IS 'the JSON as it is sent, alike at every attempt';

CREATE TABLE webhook_deliveries (
    id UUID NOT NULL,
    tenant_id UUID NOT NULL,
    endpoint_id UUID NOT NULL,
    event_id UUID NOT NULL,
    state TEXT DEFAULT 'pending' NOT NULL,
    attempt INTEGER DEFAULT 0 NOT NULL,
    once BOOLEAN DEFAULT false NOT NULL,
    next_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    lease_until TIMESTAMP WITH TIME ZONE,
    last_status INTEGER,
    last_error TEXT,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    finished_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT webhook_deliveries_pkey PRIMARY KEY (id),
    CONSTRAINT webhook_deliveries_state_check CHECK (state IN ('pending', 'sending', 'succeeded', 'failed')),
    CONSTRAINT webhook_deliveries_lease_check CHECK ((state = 'sending') = (lease_until IS NOT NULL)),
    CONSTRAINT webhook_deliveries_finished_check CHECK ((state IN ('succeeded', 'failed')) = (finished_at IS NOT NULL))
);
CREATE INDEX webhook_deliveries_by_endpoint ON webhook_deliveries (endpoint_id, id);
CREATE INDEX webhook_deliveries_by_event ON webhook_deliveries (event_id);
CREATE INDEX webhook_deliveries_due ON webhook_deliveries (endpoint_id, next_at) WHERE state = 'pending';
CREATE INDEX webhook_deliveries_sending ON webhook_deliveries (endpoint_id) WHERE state = 'sending';
COMMENT ON COLUMN webhook_deliveries.attempt IS 'fencing token: grows at each claim';
COMMENT ON COLUMN webhook_deliveries.once IS 'a test: not tried again';

CREATE TABLE webhook_attempts (
    delivery_id UUID NOT NULL,
    attempt INTEGER NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    ended_at TIMESTAMP WITH TIME ZONE,
    status INTEGER,
    error TEXT,
    answer TEXT,
    CONSTRAINT webhook_attempts_pkey PRIMARY KEY (delivery_id, attempt)
);
COMMENT ON COLUMN webhook_attempts.error IS 'null with an end: it was taken; null without: the sender died, who knows';
COMMENT ON COLUMN webhook_attempts.answer IS 'how the answer begins';

CREATE TABLE batch_endings (
    job_id UUID NOT NULL,
    tenant_id UUID NOT NULL,
    event_id UUID,
    attempt INTEGER DEFAULT 0 NOT NULL,
    lease_until TIMESTAMP WITH TIME ZONE,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT batch_endings_pkey PRIMARY KEY (job_id)
);
COMMENT ON COLUMN batch_endings.event_id IS 'sent once the files are written; null: ended before there were events';
COMMENT ON COLUMN batch_endings.attempt IS 'fencing token: grows at each claim';

ALTER TABLE jobs ADD COLUMN webhook_endpoint_id UUID;
COMMENT ON COLUMN jobs.webhook_endpoint_id IS 'told of the end whatever it subscribes to';
"""

# Files of a batch used to be written when somebody first looked at it: those that nobody has looked at are made up for.
_ENDED = """
INSERT INTO batch_endings (job_id, tenant_id)
SELECT id, tenant_id FROM jobs
WHERE source->>'type' = 'batch' AND finished_at > now() - interval '30 days'
"""

_DROP = """
DROP TABLE batch_endings, webhook_attempts, webhook_deliveries, webhook_events, webhook_secrets, webhook_endpoints;
ALTER TABLE jobs DROP COLUMN webhook_endpoint_id;
"""


def upgrade() -> None:
    """Create the tables, and note which batches may lack their files."""
    op.get_bind().exec_driver_sql(_TABLES)
    op.get_bind().exec_driver_sql(_ENDED)


def downgrade() -> None:
    """Drop them."""
    op.get_bind().exec_driver_sql(_DROP)
