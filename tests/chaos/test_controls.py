"""The proof can fail: plain Celery loses on the same harm, and without fencing the ledger does not balance."""

from __future__ import annotations

import uuid
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import text

from pipelines.jobs.outcomes import Failed, Retry, Succeeded
from pipelines.media.pack import TilePack
from pipelines.steps.prepare import media_hash_of
from pipelines.store import completions
from pipelines.store.session import Database
from tests.chaos import claims
from tests.chaos.celery_control import run_control
from tests.chaos.ledger import Accepted, Ledger, check
from tests.chaos.load import Wanted
from tests.integration.store.world import World, prepared, result

TILE = 8
COLOUR = (1, 2, 3)


@pytest.mark.chaos
def test_plain_acks_late_celery_loses_what_redis_forgets(tmp_path: Path) -> None:
    report = run_control(tmp_path, items=300, kills=1, flush=True)
    assert report["left_at_flush"] > 0
    assert report["lost"] > 0


@pytest.mark.parametrize("column", ["succeeded", "inferring"])
def test_a_late_write_is_rejected(database: Database, column: str) -> None:
    assert _late_write(database, second_is_done=column == "succeeded").broken == []


def test_without_fencing_the_ledger_does_not_balance(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    unfenced = str(completions._SUCCEED)
    for condition in ("i.attempt = entry.attempt AND ", "AND i.attempt = locked.attempt "):
        assert condition in unfenced
        unfenced = unfenced.replace(condition, "")
    unfenced = unfenced.replace("JOIN entry USING (job_id, seq, attempt)", "JOIN entry USING (job_id, seq)")
    unfenced = unfenced.replace(
        "SELECT job_id, seq, attempt, entry.text", "SELECT job_id, seq, entry.attempt, entry.text"
    )
    unfenced = unfenced.replace(
        "SELECT job_id, seq, done.tenant_id, attempt,", "SELECT job_id, seq, done.tenant_id, entry.attempt,"
    )
    monkeypatch.setattr(completions, "_SUCCEED", text(unfenced))
    ledger = _late_write(database, second_is_done=False)
    assert ledger.wrong_attempt == 1
    assert ledger.broken


@pytest.mark.parametrize(("before", "wrong"), [("internal_error", 0), ("store_unavailable", 1)])
def test_what_had_to_fail_may_end_with_another_code_only_after_it_failed_with_its_own(
    database: Database, before: str, wrong: int
) -> None:
    claims.install(database, lease=4.0)
    world = World(database)
    job = world.job(world.tenant(), 1, ready=True)
    (item,) = world.claim_ready(job, [0])
    world.complete((item, Retry(code=before, message="again", delay=0)))
    (item,) = world.claim_ready(job, [0])
    world.complete((item, Failed(code="blob_store_unavailable", message="no more")))
    ledger = _ended(world, database, job, "failed", Wanted(colour=COLOUR, code="internal_error"))
    assert (ledger.wrong_end, len(ledger.broken)) == (wrong, wrong)
    assert ledger.retries == {before: 1}


def _late_write(database: Database, *, second_is_done: bool) -> Ledger:
    """The first engine freezes past its lease, a second takes the item, and then the first hands in its answer."""
    world = World(database)
    tenant = world.tenant()
    job = world.job(tenant, 1)
    (item,) = world.claim(job, [0])
    world.complete((item, prepared()))
    (first,) = world.claim_ready(job, [0])
    world.rows(
        "UPDATE items SET state = 'ready', losses = 1, lease_until = NULL, enqueued_at = now()"
        " WHERE job_id = %(job)s RETURNING 1",
        job=job,
    )
    (second,) = world.claim_ready(job, [0], worker="second")
    colour_hash = media_hash_of(TilePack.of(np.full((1, TILE, TILE, 3), COLOUR, np.uint8), (1,)))
    answer = Succeeded(result=result(f"media {colour_hash}", media_hash=colour_hash))
    if second_is_done:
        assert world.complete((second, answer))
    world.complete((first, answer))
    if not second_is_done:
        world.complete((second, answer))
    return _ended(world, database, job, "succeeded", Wanted(colour=COLOUR))


def _ended(world: World, database: Database, job: uuid.UUID, state: str, wanted: Wanted) -> Ledger:
    """What the checker says of a job of one item, once the job has ended in `state` as its item did."""
    world.rows(
        "UPDATE jobs SET state = %(state)s, finished_at = now() WHERE id = %(job)s RETURNING 1", state=state, job=job
    )
    world.rows(
        "UPDATE job_progress SET counts = jsonb_build_object(%(state)s::text, 1) WHERE job_id = %(job)s RETURNING 1",
        state=state,
        job=job,
    )
    return check(database, [Accepted(label="job", job_id=job, wanted={"page 0": wanted})], tile=TILE)
