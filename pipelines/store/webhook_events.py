"""Events: written in the transaction that ends a job (an outbox), and fanned out to the endpoints that want them.

An event's id follows from its job's, so a job has one event of its end whatever happens in between, and a batch one
more. A batch's event waits (`batch_endings`) until its output files are written: who fetches them at once finds them.
"""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, text

from pipelines.jobs.batches import batch_end
from pipelines.jobs.ids import uuid7
from pipelines.jobs.states import ITEM_TERMINAL, JobState
from pipelines.jobs.webhooks import EventType, event_body, event_of
from pipelines.store.values import Wake, wake

_LONGEST_MESSAGE = 1_000
_MOST_CODES = 50

_ENDED = text("""
SELECT j.id, j.tenant_id, j.kind, j.state, j.metadata, j.parent_id, j.created_at, j.finished_at, j.error_code,
    j.error_message, j.webhook_endpoint_id, p.item_count, p.counts, p.errors, j.source->>'type' = 'batch' AS is_batch,
    j.source->>'type' = 'batch' AND jsonb_array_length(j.source->'problems') > 0 AS refused
FROM jobs AS j JOIN job_progress AS p ON p.job_id = j.id
WHERE j.id = :job_id
""")
_INSERT = text("""
INSERT INTO webhook_events (id, tenant_id, type, job_id, body) VALUES (:id, :tenant_id, :type, :job_id, :body)
ON CONFLICT (id) DO NOTHING
""")
_HOLD = text("""
INSERT INTO batch_endings (job_id, tenant_id, event_id) VALUES (:job_id, :tenant_id, :event_id)
ON CONFLICT (job_id) DO NOTHING
""")
_WANTING = text("""
SELECT e.id FROM webhook_endpoints AS e
WHERE e.tenant_id = :tenant_id AND e.deleted_at IS NULL AND e.disabled_at IS NULL
  AND ('*' = ANY(e.event_types) OR :type = ANY(e.event_types)
       OR e.id = (SELECT webhook_endpoint_id FROM jobs WHERE jobs.id = :job_id))
ORDER BY e.id
""")
_GET = text("SELECT id, tenant_id, type, job_id FROM webhook_events WHERE id = :id")
_DELIVER = text("""
INSERT INTO webhook_deliveries (id, tenant_id, endpoint_id, event_id, once)
VALUES (:id, :tenant_id, :endpoint_id, :event_id, :once)
""")
_NOW = text("SELECT now()")


def record_ending(conn: Connection, job_id: uuid.UUID) -> None:
    """Write the events of a job that ends in this transaction, and their deliveries. Repeatable."""
    row = conn.execute(_ENDED, {"job_id": job_id}).one()
    state = JobState(row.state)
    _record(conn, uuid.uuid5(job_id, "job"), event_of(state), row, _job_data(row))
    if row.is_batch:
        ended = sum(row.counts.get(str(item_state), 0) for item_state in ITEM_TERMINAL)
        status = batch_end(refused=row.refused, state=state, error_code=row.error_code, ended=ended, errors=row.errors)
        event_id, data = uuid.uuid5(job_id, "batch"), {"id": f"batch_{job_id.hex}"}
        _record(conn, event_id, EventType(f"batch.{status}"), row, data, held=bool(ended))


def insert_test(conn: Connection, tenant_id: uuid.UUID, endpoint_id: uuid.UUID, event: EventType) -> uuid.UUID:
    """Write a sample event for one endpoint; its delivery."""
    event_id, at = uuid7(), conn.execute(_NOW).scalar_one()
    sample = f"batch_{uuid.UUID(int=0).hex}" if event.startswith("batch.") else str(uuid.UUID(int=0))
    body = event_body(event_id, event, at, {"id": sample, "test": True})
    values = {"id": event_id, "tenant_id": tenant_id, "type": str(event), "job_id": None, "body": body}
    conn.execute(_INSERT, values)
    return deliver(conn, tenant_id, endpoint_id, event_id, once=True)


def fan_out(conn: Connection, event_id: uuid.UUID) -> int:
    """A delivery to each endpoint that wants the event; how many. An event that retention has deleted reaches none."""
    event = conn.execute(_GET, {"id": event_id}).one_or_none()
    if event is None:
        return 0
    wanted = {"tenant_id": event.tenant_id, "type": event.type, "job_id": event.job_id}
    endpoints = conn.execute(_WANTING, wanted).scalars().all()
    for endpoint_id in endpoints:
        deliver(conn, event.tenant_id, endpoint_id, event_id)
    return len(endpoints)


def deliver(
    conn: Connection, tenant_id: uuid.UUID, endpoint_id: uuid.UUID, event_id: uuid.UUID, *, once: bool = False
) -> uuid.UUID:
    """A new delivery, due at once; its id. `once`: a failure is not tried again."""
    delivery_id = uuid7()
    values = {"id": delivery_id, "tenant_id": tenant_id, "endpoint_id": endpoint_id, "event_id": event_id, "once": once}
    conn.execute(_DELIVER, values)
    wake(conn, Wake.WEBHOOK)
    return delivery_id


def _record(
    conn: Connection,
    event_id: uuid.UUID,
    event: EventType,
    row: Row[tuple[object, ...]],
    data: dict[str, Any],
    *,
    held: bool = False,
) -> None:
    body = event_body(event_id, event, row.finished_at, data)
    keys = {"tenant_id": row.tenant_id, "job_id": row.id}
    if not conn.execute(_INSERT, {**keys, "id": event_id, "type": str(event), "body": body}).rowcount:
        return
    if held:
        conn.execute(_HOLD, {**keys, "event_id": event_id})
    else:
        fan_out(conn, event_id)


def _job_data(row: Row[tuple[object, ...]]) -> dict[str, Any]:
    """What an event says of a job; everything else is a `GET` away. Bounded but for the metadata."""
    errors = sorted(row.errors.items(), key=lambda entry: (-entry[1], entry[0]))[:_MOST_CODES]
    error = None
    if row.error_code:
        error = {"code": row.error_code, "message": (row.error_message or "")[:_LONGEST_MESSAGE]}
    return {
        "id": str(row.id),
        "object": "job",
        "kind": row.kind,
        "state": row.state,
        "total": row.item_count,
        "counts": row.counts,
        "errors": dict(errors),
        "error": error,
        "parent_id": _text(row.parent_id),
        "created_at": _time(row.created_at),
        "finished_at": _time(row.finished_at),
        "metadata": row.metadata,
    }


def _text(value: uuid.UUID | None) -> str | None:
    return None if value is None else str(value)


def _time(at: datetime) -> str:
    return at.isoformat()
