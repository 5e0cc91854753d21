"""What is on its way: every item or document past waiting, grouped, in one statement over the partial indexes.

The dispatcher derives from it each tenant's share in flight, what back-pressure counts, and how full the suspect lane
is. Its cost is bounded by what the windows, the worker slots and the back-pressure let in, not by what is stored.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from sqlalchemy import Connection, text

# The arms name the predicates of the partial indexes word for word. Waiting suspects are few and looked up too.
_CENSUS = """
SELECT busy.job_id, j.tenant_id, j.priority = 0 AS interactive, j.cancel_requested_at IS NOT NULL AS cancelling,
       busy.state, busy.enqueued, busy.losses, busy.entries, busy.bytes
FROM (
    SELECT job_id, state, enqueued, least(losses, 2) AS losses, count(*) AS entries, coalesce(sum(bytes), 0) AS bytes
    FROM ({arms}) AS arms
    GROUP BY job_id, state, enqueued, least(losses, 2)
) AS busy JOIN jobs AS j ON j.id = busy.job_id
"""

_ITEM_ARMS = """
    SELECT job_id, state, false AS enqueued, losses, pack_bytes AS bytes FROM items
    WHERE state = 'ready' AND enqueued_at IS NULL
    UNION ALL
    SELECT job_id, state, true, losses, pack_bytes FROM items
    WHERE state IN ('pending', 'ready') AND enqueued_at IS NOT NULL
    UNION ALL
    SELECT job_id, state, false, losses, pack_bytes FROM items
    WHERE state IN ('preparing', 'inferring')
    UNION ALL
    SELECT job_id, state, false, losses, pack_bytes FROM items
    WHERE losses > 0 AND state IN ('pending', 'ready') AND enqueued_at IS NULL AND state = 'pending'
"""

_DOCUMENT_ARMS = """
    SELECT job_id, state, true AS enqueued, losses, 0 AS bytes FROM documents
    WHERE state = 'pending' AND enqueued_at IS NOT NULL
    UNION ALL
    SELECT job_id, state, false, losses, 0 FROM documents WHERE state = 'leased'
    UNION ALL
    SELECT job_id, state, false, losses, 0 FROM documents
    WHERE losses > 0 AND state = 'pending' AND enqueued_at IS NULL
"""

_ITEMS = text(_CENSUS.format(arms=_ITEM_ARMS))
_DOCUMENTS = text(_CENSUS.format(arms=_DOCUMENT_ARMS))


@dataclass(frozen=True, kw_only=True)
class Busy:
    """So many `entries` of one job in one state, `bytes` of tile packs among them.

    `losses` is 0, 1 or 2 (two and more). A `pending` group that is not `enqueued` holds waiting suspects only.
    """

    job_id: uuid.UUID
    tenant_id: uuid.UUID
    interactive: bool
    cancelling: bool
    state: str
    enqueued: bool
    losses: int
    entries: int
    bytes: int


def items(conn: Connection) -> tuple[Busy, ...]:
    """Items that are enqueued, ready or leased, and waiting suspects."""
    return tuple(Busy(**row._mapping) for row in conn.execute(_ITEMS))


def documents(conn: Connection) -> tuple[Busy, ...]:
    """Documents that are enqueued or leased, and waiting suspects."""
    return tuple(Busy(**row._mapping) for row in conn.execute(_DOCUMENTS))
