"""What items of a kind have cost lately, from the snapshots of ended jobs: no item is counted."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from sqlalchemy import Connection, text

RECENT = 50
"""Ended jobs that are looked at, the newest first."""

_AVERAGES = text("""
SELECT count(*) AS jobs, coalesce(sum(items), 0) AS items, coalesce(sum(documents), 0) AS documents,
    coalesce(sum(succeeded), 0) AS succeeded, coalesce(sum(tiles), 0) AS tiles,
    coalesce(sum(prompt_tokens), 0) AS prompt_tokens, coalesce(sum(completion_tokens), 0) AS completion_tokens,
    coalesce(sum(device_seconds), 0) AS device_seconds
FROM (
    SELECT j.item_count AS items, j.document_count AS documents, CAST(p.counts->>'succeeded' AS bigint) AS succeeded,
        CAST(p.usage->>'tiles' AS bigint) AS tiles, CAST(p.usage->>'prompt_tokens' AS bigint) AS prompt_tokens,
        CAST(p.usage->>'completion_tokens' AS bigint) AS completion_tokens,
        CAST(p.usage->>'device_seconds' AS double precision) AS device_seconds
    FROM jobs AS j JOIN job_progress AS p ON p.job_id = j.id
    WHERE j.kind = :kind AND j.finished_at IS NOT NULL
      AND (CAST(:tenant_id AS uuid) IS NULL OR j.tenant_id = CAST(:tenant_id AS uuid))
    ORDER BY j.id DESC
    LIMIT :recent
) AS ended
WHERE succeeded > 0
""")


@dataclass(frozen=True, kw_only=True)
class Averages:
    """Over `results` of `jobs` ended jobs: what one result was charged, and the items that a document became."""

    jobs: int
    results: int
    items_a_document: float
    tiles: float
    prompt_tokens: float
    completion_tokens: float
    device_seconds: float


def averages(conn: Connection, kind: str, *, tenant_id: uuid.UUID | None, least: int) -> Averages | None:
    """Of the tenant's jobs, or (None) of everybody's; None below `least` results."""
    row = conn.execute(_AVERAGES, {"kind": kind, "tenant_id": tenant_id, "recent": RECENT}).one()
    if row.succeeded < least:
        return None
    results = int(row.succeeded)
    return Averages(
        jobs=row.jobs,
        results=results,
        items_a_document=max(1.0, float(row.items) / float(row.documents)) if row.documents else 1.0,
        tiles=float(row.tiles) / results,
        prompt_tokens=float(row.prompt_tokens) / results,
        completion_tokens=float(row.completion_tokens) / results,
        device_seconds=float(row.device_seconds) / results,
    )
