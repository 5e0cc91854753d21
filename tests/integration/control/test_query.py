"""What a page of results costs: its own rows, wherever in the job it lies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import text

from pipelines.control import query
from pipelines.jobs.ids import uuid7
from pipelines.store.session import Database
from tests.bench.exports import DOCUMENTS, ITEMS, JOB, PROGRESS, RESULTS
from tests.integration.store.world import World

ROWS, PAGE = 4_000, 20


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from nodes(below)


@pytest.mark.parametrize("unloved", ["enable_nestloop", "enable_mergejoin"])
def test_a_page_far_behind_reads_no_more_rows_than_the_first(world: World, database: Database, unloved: str) -> None:
    """Whatever the planner would rather do: a large job once made it merge, from the first result on, for each page."""
    tenant, job = world.tenant(), uuid7()
    with database.begin() as conn:
        for sql in (JOB, PROGRESS, DOCUMENTS, ITEMS, RESULTS):
            conn.exec_driver_sql(sql, {"job": job, "tenant": tenant, "rows": ROWS})
        conn.exec_driver_sql("ANALYZE")
    with database.begin() as conn:
        conn.exec_driver_sql(f"SET LOCAL {unloved} = off")
        values = {
            "job": job,
            "tenant": tenant,
            "states": ["succeeded"],
            "after": ROWS - 2 * PAGE,
            "limit": PAGE,
        }
        explained = conn.execute(text(f"EXPLAIN (ANALYZE, FORMAT JSON) {query.RESULTS_AFTER.text}"), values)
        plan = explained.scalar_one()[0]["Plan"]
        assert plan["Actual Rows"] == PAGE
        read = [(node["Node Type"], node["Actual Rows"] * node["Actual Loops"]) for node in nodes(plan)]
        assert max(rows for _, rows in read) <= 2 * PAGE, read
        found = query.read_results(conn, tenant, job, after=ROWS - 2 * PAGE, limit=PAGE)
    assert [view.seq for view in found] == list(range(ROWS - 2 * PAGE + 1, ROWS - PAGE + 1))
