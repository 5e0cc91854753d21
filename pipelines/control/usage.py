"""What a tenant has spent, added up from the snapshots of its jobs."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

_SPENT = text("""
SELECT count(*) AS jobs,
       coalesce(sum(CAST(p.usage->>'prompt_tokens' AS bigint)), 0) AS prompt_tokens,
       coalesce(sum(CAST(p.usage->>'cached_tokens' AS bigint)), 0) AS cached_tokens,
       coalesce(sum(CAST(p.usage->>'completion_tokens' AS bigint)), 0) AS completion_tokens,
       coalesce(sum(CAST(p.usage->>'tiles' AS bigint)), 0) AS tiles,
       coalesce(sum(CAST(p.usage->>'device_seconds' AS double precision)), 0) AS device_seconds
FROM jobs AS j JOIN job_progress AS p ON p.job_id = j.id
WHERE j.tenant_id = :tenant
  AND (CAST(:since AS timestamptz) IS NULL OR j.created_at >= CAST(:since AS timestamptz))
  AND (CAST(:until AS timestamptz) IS NULL OR j.created_at < CAST(:until AS timestamptz))
""")


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Counters over jobs; `counters` as in a job's own usage."""

    jobs: int
    counters: Mapping[str, Any]


def spent(conn: Connection, tenant_id: uuid.UUID, *, since: datetime | None, until: datetime | None) -> Spent:
    """All jobs created from `since` on and before `until`."""
    row = conn.execute(_SPENT, {"tenant": tenant_id, "since": since, "until": until}).one()
    counters = {name: value for name, value in row._mapping.items() if name != "jobs"}
    return Spent(
        jobs=row.jobs,
        counters={name: float(value) if name == "device_seconds" else int(value) for name, value in counters.items()},
    )
