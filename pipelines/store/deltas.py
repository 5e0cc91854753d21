"""The SQL fragment with which every statement that ends items also records how many, in the same statement.

Append-only: nobody waits for a counter. `pipelines.store.progress` folds the rows.
"""

from __future__ import annotations

ENDED = """
counted AS (
    INSERT INTO job_deltas (job_id, failed, cancelled, errors)
    SELECT
        job_id,
        coalesce(sum(n) FILTER (WHERE state = 'failed'), 0),
        coalesce(sum(n) FILTER (WHERE state = 'cancelled'), 0),
        coalesce(jsonb_object_agg(error_code, n) FILTER (WHERE state = 'failed'), '{}')
    FROM (
        SELECT job_id, state, error_code, count(*) AS n
        FROM ended
        WHERE state IN ('failed', 'cancelled')
        GROUP BY job_id, state, error_code
    ) AS groups
    GROUP BY job_id
)
"""
"""Reads a CTE named `ended` with job_id, state, error_code; rows of other states are ignored."""
