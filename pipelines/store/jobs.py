"""Jobs: accepted, read, listed. Planning stands in `pipelines.store.plans`, and is offered here too.

What a client sees of a job (state, counts, version) comes from its `job_progress` snapshot, so every replica answers
alike and no poll counts rows.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, text

from pipelines.jobs.models import Job, JobPriority, JobSpec, JsonObject
from pipelines.jobs.states import ItemState, JobState, PlanState, roll_up
from pipelines.store.plans import (
    FailedAtPlan,
    NeedsPaging,
    PlanLease,
    PlannedDocument,
    Single,
    SomePages,
    append_plan,
    claim_plan,
    fail_plan,
    heartbeat_plans,
    release_plan,
    retry_plan,
    write_documents,
)
from pipelines.store.values import Wake, to_json, wake

__all__ = [
    "FailedAtPlan",
    "NeedsPaging",
    "NewJob",
    "PlanLease",
    "PlannedDocument",
    "Single",
    "SomePages",
    "append_plan",
    "claim_plan",
    "fail_plan",
    "get_job",
    "get_spec",
    "heartbeat_plans",
    "insert_job",
    "insert_planned",
    "list_jobs",
    "release_plan",
    "retry_plan",
]

# The job and its first snapshot are one fact.
_INSERT = text("""
WITH job AS (
    INSERT INTO jobs (id, tenant_id, kind, parameters, source, metadata, priority, deadline_at, parent_id,
        webhook_endpoint_id, state, plan_state, item_count, document_count, started_at)
    VALUES (:job_id, :tenant_id, :kind, CAST(:parameters AS jsonb), CAST(:source AS jsonb),
            CAST(:metadata AS jsonb), :priority, :deadline_at, :parent_id, :webhook_endpoint_id,
            CAST(:state AS text), CAST(:plan_state AS text), :item_count, :document_count,
            CASE WHEN CAST(:plan_state AS text) <> 'pending' THEN now() END)
    RETURNING id, tenant_id, state, plan_state, item_count
)
INSERT INTO job_progress (job_id, tenant_id, state, plan_state, item_count, counts)
SELECT id, tenant_id, state, plan_state, item_count, CAST(:counts AS jsonb) FROM job
""")

_SPEC = text("""
SELECT j.id, j.tenant_id, j.kind, j.parameters, j.source, j.priority, j.deadline_at, t.allowed_buckets,
    j.schedule_id, coalesce(r.only_new, false) AS only_new
FROM jobs AS j JOIN tenants AS t ON t.id = j.tenant_id LEFT JOIN schedule_runs AS r ON r.id = j.schedule_run_id
WHERE j.id = :job_id
""")

_JOB = """
SELECT j.id, j.tenant_id, j.kind, j.priority, j.parameters, j.source, j.metadata, j.created_at, j.started_at,
       j.finished_at, j.cancel_requested_at, j.deadline_at, j.parent_id, j.error_code, j.error_message,
       j.schedule_id, j.schedule_run_id, j.webhook_endpoint_id,
       p.state, p.plan_state, p.item_count, p.counts, p.errors, p.usage, p.version
FROM jobs AS j JOIN job_progress AS p ON p.job_id = j.id
"""

_GET = text(_JOB + "WHERE j.id = :job_id AND j.tenant_id = :tenant_id")

# Newest first; the cursor is the last id seen. A condition whose parameter is null holds for every row.
_LIST = text(
    _JOB
    + """
WHERE j.tenant_id = :tenant_id
  AND (CAST(:before AS uuid) IS NULL OR j.id < CAST(:before AS uuid))
  AND (CAST(:states AS text[]) IS NULL OR p.state = ANY(CAST(:states AS text[])))
  AND (CAST(:kind AS text) IS NULL OR j.kind = CAST(:kind AS text))
  AND (CAST(:source_type AS text) IS NULL OR j.source ->> 'type' = CAST(:source_type AS text))
  AND (CAST(:metadata AS jsonb) IS NULL OR j.metadata @> CAST(:metadata AS jsonb))
  AND (CAST(:created_from AS timestamptz) IS NULL OR j.created_at >= CAST(:created_from AS timestamptz))
  AND (CAST(:created_until AS timestamptz) IS NULL OR j.created_at < CAST(:created_until AS timestamptz))
  AND (CAST(:parent_id AS uuid) IS NULL OR j.parent_id = CAST(:parent_id AS uuid))
  AND (CAST(:schedule_id AS uuid) IS NULL OR j.schedule_id = CAST(:schedule_id AS uuid))
ORDER BY j.id DESC
LIMIT :limit
"""
)


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """A job to be accepted: what never changes of it. `parameters` are validated by its kind."""

    job_id: uuid.UUID
    tenant_id: uuid.UUID
    kind: str
    parameters: JsonObject
    source: JsonObject
    priority: JobPriority = JobPriority.NORMAL
    deadline_at: datetime | None = None
    metadata: JsonObject = field(default_factory=dict)
    parent_id: uuid.UUID | None = None
    webhook_endpoint_id: uuid.UUID | None = None


def insert_job(conn: Connection, new: NewJob) -> None:
    """Accept a job: `queued`, its plan pending, its first snapshot written, the dispatcher woken at commit."""
    _insert(conn, new, plan=PlanState.PENDING, documents=0, items=0, unplanned=0)
    wake(conn, Wake.PLAN)


def insert_planned(conn: Connection, new: NewJob, documents: Sequence[PlannedDocument]) -> None:
    """Accept a job together with its whole plan, in the caller's transaction; the dispatcher is woken at commit.

    Nothing of it has ended, so `documents` are `Single` or `NeedsPaging`; raises `ValueError` for others.
    """
    items = sum(isinstance(document.items, Single) for document in documents)
    unplanned = sum(isinstance(document.items, NeedsPaging) for document in documents)
    if not documents or items + unplanned != len(documents):
        raise ValueError("a job is accepted with its plan only where every document of it can run")
    _insert(conn, new, plan=PlanState.DONE, documents=len(documents), items=items, unplanned=unplanned)
    write_documents(conn, new.job_id, new.tenant_id, documents)
    wake(conn, *((Wake.PREPARE,) if items else ()), *((Wake.PAGINATE,) if unplanned else ()))


def _insert(conn: Connection, new: NewJob, *, plan: PlanState, documents: int, items: int, unplanned: int) -> None:
    counts = {ItemState.PENDING: items} if items else {}
    state = roll_up(plan=plan, unplanned_documents=unplanned, counts=counts, cancel_requested=False)
    values = {
        "job_id": new.job_id,
        "tenant_id": new.tenant_id,
        "kind": new.kind,
        "parameters": to_json(new.parameters),
        "source": to_json(new.source),
        "metadata": to_json(new.metadata),
        "priority": int(new.priority),
        "deadline_at": new.deadline_at,
        "parent_id": new.parent_id,
        "webhook_endpoint_id": new.webhook_endpoint_id,
        "state": str(state),
        "plan_state": str(plan),
        "item_count": items,
        "document_count": documents,
        "counts": to_json({str(item_state): n for item_state, n in counts.items()}),
    }
    conn.execute(_INSERT, values)


def get_spec(conn: Connection, job_id: uuid.UUID) -> JobSpec | None:
    """What workers cache of a job, with its tenant's buckets. For workers: the id comes from a message of ours."""
    row = conn.execute(_SPEC, {"job_id": job_id}).one_or_none()
    if row is None:
        return None
    return JobSpec(
        job_id=row.id,
        tenant_id=row.tenant_id,
        kind=row.kind,
        parameters=row.parameters,
        source=row.source,
        priority=JobPriority(row.priority),
        deadline_at=row.deadline_at,
        allowed_buckets=None if row.allowed_buckets is None else tuple(row.allowed_buckets),
        only_new_of=row.schedule_id if row.only_new else None,
    )


def get_job(conn: Connection, tenant_id: uuid.UUID, job_id: uuid.UUID) -> Job | None:
    """The tenant's job as its last snapshot has it; None where the tenant has none of this id."""
    row = conn.execute(_GET, {"job_id": job_id, "tenant_id": tenant_id}).one_or_none()
    return None if row is None else _job(row)


def list_jobs(
    conn: Connection,
    tenant_id: uuid.UUID,
    *,
    limit: int,
    before: uuid.UUID | None = None,
    states: Sequence[JobState] | None = None,
    kind: str | None = None,
    source_type: str | None = None,
    metadata: JsonObject | None = None,
    created_from: datetime | None = None,
    created_until: datetime | None = None,
    parent_id: uuid.UUID | None = None,
    schedule_id: uuid.UUID | None = None,
) -> tuple[Job, ...]:
    """The tenant's jobs, newest first, at most `limit`; `before` is the last id of the page before.

    `metadata`: every pair must be in the job's own. `created_until` is exclusive.
    """
    values = {
        "tenant_id": tenant_id,
        "limit": limit,
        "before": before,
        "states": None if states is None else [str(state) for state in states],
        "kind": kind,
        "source_type": source_type,
        "metadata": None if metadata is None else to_json(metadata),
        "created_from": created_from,
        "created_until": created_until,
        "parent_id": parent_id,
        "schedule_id": schedule_id,
    }
    return tuple(_job(row) for row in conn.execute(_LIST, values))


def _job(row: Row[tuple[object, ...]]) -> Job:
    counts: Mapping[str, int] = row.counts
    usage: Mapping[str, Any] = row.usage
    return Job(
        job_id=row.id,
        tenant_id=row.tenant_id,
        kind=row.kind,
        state=JobState(row.state),
        priority=JobPriority(row.priority),
        parameters=row.parameters,
        source=row.source,
        metadata=row.metadata,
        plan=PlanState(row.plan_state),
        item_count=row.item_count,
        counts={state: counts.get(str(state), 0) for state in ItemState},
        version=row.version,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        cancel_requested_at=row.cancel_requested_at,
        deadline_at=row.deadline_at,
        parent_id=row.parent_id,
        error_code=row.error_code,
        error_message=row.error_message,
        errors=row.errors,
        usage=usage,
        schedule_id=row.schedule_id,
        schedule_run_id=row.schedule_run_id,
        webhook_endpoint_id=row.webhook_endpoint_id,
    )
