"""Nothing is lost and nothing is done twice, while workers die, leaders freeze and Redis forgets."""

from __future__ import annotations

import uuid

import pytest

from pipelines.control import cancel, redrive
from pipelines.jobs.states import ITEM_TERMINAL
from pipelines.store import jobs
from pipelines.store.session import Database
from tests.integration.control.fleet import WINDOW, Fleet
from tests.integration.store.guards import refuse_changes_of_terminal_rows
from tests.integration.store.world import World

DOCUMENTS = 30
POISON = ("3", "22")


def all_ended(database: Database) -> bool:
    with database.begin() as conn:
        unfinished = "SELECT count(*) FROM jobs WHERE finished_at IS NULL"
        return int(conn.exec_driver_sql(unfinished).scalar_one()) == 0


@pytest.mark.parametrize("seed", [1])
def test_every_item_ends_exactly_once(database: Database, database_url: str, redis_url: str, seed: int) -> None:
    refuse_changes_of_terminal_rows(database)
    world = World(database)
    tenants = [world.tenant(), world.tenant(weight=2.0)]
    submitted = [(tenant, world.submitted(tenant)) for tenant in tenants for _ in range(2)]
    with Fleet(database_url, redis_url, seed=seed, documents=DOCUMENTS, poison=POISON) as fleet:
        fleet.wait(lambda: sum(fleet.accepted.values()) > 20)
        with database.begin() as conn:
            cancel.request(conn, *submitted[0])
        fleet.forget_everything()
        fleet.wait(lambda: all_ended(database))
        with database.begin() as conn:
            child = redrive.create(conn, *submitted[1], codes=["corrupt_media", "worker_lost"])
        fleet.wait(lambda: all_ended(database))
        assert fleet.failures == []
    check(world, fleet)
    for tenant, job in [*submitted, (submitted[1][0], child)]:
        check_job(world, tenant, job)
    assert fleet.happened["worker died"] > 3
    assert fleet.deepest <= WINDOW + 4  # the window, and what the test itself put back twice


def check(world: World, fleet: Fleet) -> None:
    rows = world.rows(
        "SELECT i.job_id, i.seq, i.state, i.attempt, i.losses, i.error_code, d.name, r.attempt AS made_by"
        " FROM items i JOIN documents d USING (job_id, doc) LEFT JOIN results r USING (job_id, seq)"
    )
    assert all(row.state in ITEM_TERMINAL for row in rows)
    for row in rows:
        assert row.made_by == (row.attempt if row.state == "succeeded" else None)
        assert fleet.accepted[row.job_id, row.seq] <= 1
        assert (fleet.accepted[row.job_id, row.seq] == 1) or row.state != "succeeded"
        if row.error_code == "worker_lost":
            assert row.losses == 3
            assert row.name in POISON
    assert world.rows("SELECT count(*) FROM results")[0][0] == sum(row.state == "succeeded" for row in rows)
    assert world.rows("SELECT count(*) FROM job_deltas")[0][0] == 0
    assert {row.name for row in rows if row.error_code == "worker_lost"} == set(POISON)


def check_job(world: World, tenant: uuid.UUID, job: uuid.UUID) -> None:
    with world.database.begin() as conn:
        found = jobs.get_job(conn, tenant, job)
    assert found is not None
    counted = world.states(job)
    assert {str(state): n for state, n in found.counts.items() if n} == counted
    assert found.item_count == sum(counted.values())
    codes = world.rows(
        "SELECT error_code, count(*) FROM items WHERE job_id = %(job)s AND state = 'failed' GROUP BY 1", job=job
    )
    assert dict(found.errors) == {row[0]: row[1] for row in codes}
    spent = world.rows(
        "SELECT coalesce(sum(prompt_tokens), 0), coalesce(sum(tiles), 0) FROM results WHERE job_id = %(job)s", job=job
    )
    assert (found.usage.get("prompt_tokens", 0), found.usage.get("tiles", 0)) == tuple(spent[0])
    documents = world.rows("SELECT doc FROM documents WHERE job_id = %(job)s ORDER BY doc", job=job)
    assert [row[0] for row in documents] == list(range(len(documents)))
    if found.parent_id is None and found.cancel_requested_at is None:
        assert len(documents) == DOCUMENTS
    seqs = world.rows("SELECT seq FROM items WHERE job_id = %(job)s ORDER BY seq", job=job)
    assert [row[0] for row in seqs] == list(range(len(seqs)))
