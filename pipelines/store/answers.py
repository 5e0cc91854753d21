"""Answers that the tenant had before: an index over its own results, no second copy.

A result that may be taken again carries its key in its provenance; a partial index finds it there. So an answer lives
exactly as long as the result it is, goes with its partition, and needs no upkeep of its own. Results that were
themselves taken carry no key: nothing is kept beyond its retention by being asked for again.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from sqlalchemy import Connection, text

from pipelines.jobs.models import JsonObject

# The tenant is part of the index and of the statement; the medium is compared once more, beside the key.
_FIND = text("""
SELECT job_id, seq, attempt, text, output, flags, finish_reason, mean_logprob, provenance
FROM results
WHERE tenant_id = :tenant_id AND (provenance->>'answer_key') = :key AND media_hash = :media_hash
ORDER BY job_id, seq
LIMIT 1
""")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A result of the tenant's to an equal question about an equal medium."""

    job_id: uuid.UUID
    seq: int
    attempt: int
    text: str
    output: JsonObject
    flags: tuple[str, ...]
    finish_reason: str
    mean_logprob: float | None
    provenance: JsonObject


def find(conn: Connection, tenant_id: uuid.UUID, *, key: str, media_hash: str) -> Answer | None:
    """The tenant's oldest result with this key, about this medium."""
    values = {"tenant_id": tenant_id, "key": key, "media_hash": media_hash}
    row = conn.execute(_FIND, values).one_or_none()
    if row is None:
        return None
    return Answer(
        job_id=row.job_id,
        seq=row.seq,
        attempt=row.attempt,
        text=row.text,
        output=row.output,
        flags=tuple(row.flags),
        finish_reason=row.finish_reason,
        mean_logprob=row.mean_logprob,
        provenance=row.provenance,
    )
