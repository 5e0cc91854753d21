"""A child job of a job's failed items: documents and pages copied inside the database, numbered anew."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from pipelines.jobs.states import ItemState, PlanState, roll_up
from pipelines.store.values import Wake, to_json, wake

# A document that failed before it had items waits to be paged again, and so brings no item yet. One that failed because
# its entry named no usable medium would fail in the same way for ever: it is left out.
_FAILED = """
failed AS (
    SELECT i.seq, i.doc, i.page, d.state AS document_state
    FROM items AS i JOIN documents AS d ON d.job_id = i.job_id AND d.doc = i.doc
    WHERE i.job_id = :parent_id AND i.tenant_id = :tenant_id AND i.state IN ('failed', 'cancelled')
      AND i.state = 'failed'
      AND (CAST(:codes AS text[]) IS NULL OR i.error_code = ANY(CAST(:codes AS text[])))
      AND NOT (d.state = 'failed' AND d.media = '[]')
),
numbered AS (
    SELECT doc, row_number() OVER (ORDER BY doc) - 1 AS new_doc FROM (SELECT DISTINCT doc FROM failed) AS docs
)
"""

_PARENT = text("SELECT 1 FROM jobs WHERE id = :parent_id AND tenant_id = :tenant_id")

_PATIENCE = text("SELECT set_config('statement_timeout', '300s', true)")

_DOCUMENTS = text(
    "WITH"
    + _FAILED
    + """
INSERT INTO documents (job_id, doc, tenant_id, name, media, overrides, metadata, state, pages)
SELECT :child_id, numbered.new_doc, d.tenant_id, d.name, d.media, d.overrides, d.metadata,
    CASE WHEN d.state = 'failed' THEN 'pending' ELSE 'done' END, CASE WHEN d.state = 'failed' THEN NULL ELSE d.pages END
FROM numbered JOIN documents AS d ON d.job_id = :parent_id AND d.doc = numbered.doc
"""
)

_ITEMS = text(
    "WITH"
    + _FAILED
    + """
INSERT INTO items (job_id, seq, tenant_id, doc, page)
SELECT :child_id, row_number() OVER (ORDER BY failed.seq) - 1, :tenant_id, numbered.new_doc, failed.page
FROM failed JOIN numbered USING (doc)
WHERE failed.document_state <> 'failed'
"""
)

_UNPLANNED = text("SELECT count(*) FROM documents WHERE job_id = :child_id AND state = 'pending'")

# The source is listed no more: the plan is done. A deadline that passed would end the child at once, so it has none.
_CHILD = text("""
WITH child AS (
    INSERT INTO jobs (id, tenant_id, kind, parameters, source, metadata, priority, parent_id, state, plan_state,
        started_at, item_count, document_count, schedule_id, schedule_run_id, webhook_endpoint_id)
    SELECT :child_id, tenant_id, kind, parameters, source, metadata, priority, id, :state, 'done', now(),
        :item_count, :document_count, schedule_id, schedule_run_id, webhook_endpoint_id
    FROM jobs WHERE id = :parent_id AND tenant_id = :tenant_id
    RETURNING id, tenant_id, state, plan_state, item_count
)
INSERT INTO job_progress (job_id, tenant_id, state, plan_state, item_count, counts)
SELECT id, tenant_id, state, plan_state, item_count, CAST(:counts AS jsonb) FROM child
""")


@dataclass(frozen=True, kw_only=True)
class Copied:
    """What the child holds; both zero: nothing matched, and no job was made."""

    documents: int
    items: int


def insert_child(
    conn: Connection, *, tenant_id: uuid.UUID, parent_id: uuid.UUID, child_id: uuid.UUID, codes: Sequence[str] | None
) -> Copied | None:
    """Copy the parent's failed items (those with one of `codes`, or all) into a new job. None: no such parent."""
    keys = {
        "tenant_id": tenant_id,
        "parent_id": parent_id,
        "child_id": child_id,
        "codes": None if codes is None else list(codes),
    }
    if conn.execute(_PARENT, keys).one_or_none() is None:
        return None
    conn.execute(_PATIENCE)
    items = conn.execute(_ITEMS, keys).rowcount
    documents = conn.execute(_DOCUMENTS, keys).rowcount
    if documents:
        unplanned = conn.execute(_UNPLANNED, keys).scalar_one()
        counts = {ItemState.PENDING: items}
        state = roll_up(plan=PlanState.DONE, unplanned_documents=unplanned, counts=counts, cancel_requested=False)
        values = {
            **keys,
            "state": str(state),
            "item_count": items,
            "document_count": documents,
            "counts": to_json({str(ItemState.PENDING): items} if items else {}),
        }
        conn.execute(_CHILD, values)
        wake(conn, Wake.PREPARE, Wake.PAGINATE)
    return Copied(documents=documents, items=items)
