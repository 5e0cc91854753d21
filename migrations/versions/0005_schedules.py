"""Schedules: what repeats, each time it was due, the objects that were done.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_UP = """
CREATE TABLE schedules (
    id UUID NOT NULL,
    tenant_id UUID NOT NULL,
    name TEXT NOT NULL,
    cron TEXT NOT NULL,
    timezone TEXT NOT NULL,
    template JSONB NOT NULL,
    overlap TEXT NOT NULL,
    catch_up TEXT NOT NULL,
    catch_up_limit INTEGER NOT NULL,
    misfire_grace DOUBLE PRECISION NOT NULL,
    only_new BOOLEAN NOT NULL,
    next_at TIMESTAMP WITH TIME ZONE,
    paused_at TIMESTAMP WITH TIME ZONE,
    deleted_at TIMESTAMP WITH TIME ZONE,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT schedules_pkey PRIMARY KEY (id),
    CONSTRAINT schedules_tenant_id_fkey FOREIGN KEY(tenant_id) REFERENCES tenants (id),
    CONSTRAINT schedules_overlap_check CHECK (overlap IN ('skip', 'allow', 'cancel_previous')),
    CONSTRAINT schedules_catch_up_check CHECK (catch_up IN ('none', 'last', 'all')),
    CONSTRAINT schedules_next_check CHECK (next_at IS NULL OR paused_at IS NULL AND deleted_at IS NULL)
);
CREATE INDEX schedules_by_tenant ON schedules (tenant_id, id);
CREATE UNIQUE INDEX schedules_by_name ON schedules (tenant_id, name) WHERE deleted_at IS NULL;
CREATE INDEX schedules_due ON schedules (next_at) WHERE next_at IS NOT NULL;
CREATE INDEX schedules_deleted ON schedules (id) WHERE deleted_at IS NOT NULL;
COMMENT ON COLUMN schedules.template IS 'the job of each run; its URLs may hold dates to be filled in';
COMMENT ON COLUMN schedules.misfire_grace IS 'seconds';

CREATE TABLE schedule_runs (
    id UUID NOT NULL,
    schedule_id UUID NOT NULL,
    tenant_id UUID NOT NULL,
    trigger TEXT NOT NULL,
    scheduled_at TIMESTAMP WITH TIME ZONE NOT NULL,
    fired_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    state TEXT NOT NULL,
    only_new BOOLEAN NOT NULL,
    job_id UUID,
    error_code TEXT,
    error_message TEXT,
    CONSTRAINT schedule_runs_pkey PRIMARY KEY (id),
    CONSTRAINT schedule_runs_schedule_id_fkey FOREIGN KEY(schedule_id) REFERENCES schedules (id),
    CONSTRAINT schedule_runs_trigger_check CHECK (trigger IN ('cron', 'manual')),
    CONSTRAINT schedule_runs_state_check CHECK (state IN ('fired', 'skipped', 'missed', 'failed')),
    CONSTRAINT schedule_runs_job_check CHECK ((state = 'fired') = (job_id IS NOT NULL)),
    CONSTRAINT schedule_runs_failure_has_a_code_check CHECK ((state = 'failed') <= (error_code IS NOT NULL))
);
CREATE INDEX schedule_runs_by_schedule ON schedule_runs (schedule_id, id);
CREATE UNIQUE INDEX schedule_runs_once ON schedule_runs (schedule_id, scheduled_at) WHERE trigger = 'cron';

CREATE TABLE schedule_objects (
    schedule_id UUID NOT NULL,
    object BYTEA NOT NULL,
    version TEXT NOT NULL,
    missing INTEGER[] NOT NULL,
    pages INTEGER,
    run_at TIMESTAMP WITH TIME ZONE NOT NULL,
    listed_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT schedule_objects_pkey PRIMARY KEY (schedule_id, object)
);
COMMENT ON COLUMN schedule_objects.object IS 'SHA-256 of its URL';
COMMENT ON COLUMN schedule_objects.version IS 'that was done, as it was pinned';
COMMENT ON COLUMN schedule_objects.missing IS 'pages of it that no run has done yet; empty: none';
COMMENT ON COLUMN schedule_objects.pages IS 'how many it has; null: it is one item';

ALTER TABLE jobs ADD COLUMN schedule_id UUID, ADD COLUMN schedule_run_id UUID,
    ADD COLUMN objects_recorded_at TIMESTAMP WITH TIME ZONE;
COMMENT ON COLUMN jobs.schedule_id IS 'the schedule it is a run of, or a redrive of a run';
CREATE INDEX jobs_by_schedule ON jobs (schedule_id, id) WHERE schedule_id IS NOT NULL;
CREATE INDEX jobs_unrecorded ON jobs (schedule_id, id) WHERE schedule_id IS NOT NULL AND objects_recorded_at IS NULL;
"""

_DOWN = """
ALTER TABLE jobs DROP COLUMN schedule_id, DROP COLUMN schedule_run_id, DROP COLUMN objects_recorded_at;
DROP TABLE schedule_objects, schedule_runs, schedules;
"""


def upgrade() -> None:
    """Make the tables, and link jobs to them."""
    op.get_bind().exec_driver_sql(_UP)


def downgrade() -> None:
    """Drop schedules, their history and what they remember; jobs stay."""
    op.get_bind().exec_driver_sql(_DOWN)
