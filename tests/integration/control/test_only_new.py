"""Runs of a schedule do what is new: new objects, new versions, what failed before; and never what has succeeded."""

from __future__ import annotations

import random
from datetime import timedelta

import pytest

from pipelines.control import redrive
from pipelines.control.schedule import run_now
from pipelines.jobs.ids import uuid7_floor
from pipelines.jobs.schedules import Overlap, RunState
from pipelines.store import partitions, retention, schedule_objects
from tests.integration.control.scheduling import RULES, Scheduling
from tests.integration.store.world import World


@pytest.fixture
def leading(world: World) -> Scheduling:
    return Scheduling(world)


def listing(**versions: int) -> dict[str, str]:
    """a_png=1 → a.png at version 1."""
    return {name.replace("_", "."): f'etag:"{version}"' for name, version in versions.items()}


def test_the_next_run_does_what_is_new_or_has_changed(leading: Scheduling) -> None:
    made = leading.make()
    assert leading.run(made, listing(a_png=1, b_png=1)) == ["a.png", "b.png"]
    assert leading.run(made, listing(a_png=1, b_png=1)) == []
    assert leading.run(made, listing(a_png=1, b_png=2, c_png=1)) == ["b.png", "c.png"]
    assert leading.run(made, listing(a_png=1, b_png=2, c_png=1)) == []
    assert leading.run(made, listing(b_png=1)) == ["b.png"], "an older version that comes back is another one"


def test_what_failed_is_done_again_and_then_never(leading: Scheduling) -> None:
    made = leading.make()
    leading.run(made, listing(a_png=1, b_png=1), failing=[("b.png", None)])
    assert leading.run(made, listing(a_png=1, b_png=1), failing=[("b.png", None)]) == ["b.png"]
    assert leading.run(made, listing(a_png=1, b_png=1)) == ["b.png"]
    assert leading.run(made, listing(a_png=1, b_png=1)) == []


def test_of_a_document_the_failed_pages_alone_are_done_again(leading: Scheduling) -> None:
    made = leading.make()
    first = leading.run(made, listing(x_pdf=1, y_pdf=1), failing=[("x.pdf", 0), ("x.pdf", 2)])
    assert first == ["x.pdf:0", "x.pdf:1", "x.pdf:2", "y.pdf:0", "y.pdf:1", "y.pdf:2"]
    assert leading.run(made, listing(x_pdf=1, y_pdf=1), failing=[("x.pdf", 2)]) == ["x.pdf:0", "x.pdf:2"]
    assert leading.run(made, listing(x_pdf=1, y_pdf=1)) == ["x.pdf:2"]
    assert leading.run(made, listing(x_pdf=1, y_pdf=1)) == []
    assert leading.run(made, listing(x_pdf=2)) == ["x.pdf:0", "x.pdf:1", "x.pdf:2"], "a new version is new as a whole"


def test_a_redrives_success_counts_however_it_was_split(leading: Scheduling) -> None:
    made = leading.make()
    leading.run(made, listing(x_pdf=1, a_png=1), failing=[("x.pdf", 0), ("x.pdf", 1), ("a.png", None)])
    parent = leading.job(made)
    leading.world.rows("UPDATE items SET error_code = 'y' WHERE page = 1 RETURNING 1")
    with leading.database.begin() as conn:
        child = redrive.create(conn, leading.tenant.tenant_id, parent, codes=["x"])
    assert leading.items(child) == ["a.png", "x.pdf:0"]
    leading.finish(child)
    assert leading.run(made, listing(x_pdf=1, a_png=1)) == ["x.pdf:1"]


def test_a_redrive_of_an_old_version_does_not_hide_that_the_new_one_is_done(leading: Scheduling) -> None:
    made = leading.make()
    leading.run(made, listing(a_png=1), failing=[("a.png", None)])
    old = leading.job(made)
    assert leading.run(made, listing(a_png=2)) == ["a.png"]
    with leading.database.begin() as conn:
        child = redrive.create(conn, leading.tenant.tenant_id, old, codes=None)
    leading.finish(child)
    assert leading.run(made, listing(a_png=2)) == []


def test_it_does_not_matter_whether_the_leader_or_the_planner_writes_it_down(leading: Scheduling) -> None:
    made = leading.make()
    leading.run(made, listing(a_png=1))
    assert leading.scheduler.record(leading.epoch) == 1
    assert leading.scheduler.record(leading.epoch) == 0
    assert leading.run(made, listing(a_png=1, b_png=1)) == ["b.png"]
    leading.scheduler.record(leading.epoch)
    leading.world.rows("UPDATE jobs SET objects_recorded_at = NULL RETURNING 1")  # a crash: all of it once more
    leading.scheduler.record(leading.epoch)
    assert leading.run(made, listing(a_png=1, b_png=1)) == []


def test_large_jobs_are_written_down_in_windows_a_few_a_call(
    leading: Scheduling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule_objects, "WINDOW", 2)
    monkeypatch.setattr("pipelines.control.firing._WINDOWS", 3)
    made = leading.make()
    many = {f"{n:02}.png": "etag:1" for n in range(9)} | {"x.pdf": "etag:1"}
    leading.run(made, many, pages=5, failing=[("x.pdf", 3)])
    calls = [leading.scheduler.record(leading.epoch) for _ in range(3)]
    assert calls == [0, 0, 1], "seven windows of two items"
    assert leading.run(made, many) == ["x.pdf:3"]


def test_a_run_beside_another_leaves_out_what_that_one_has_done_so_far(leading: Scheduling) -> None:
    made = leading.make(overlap=Overlap.ALLOW)
    leading.fire()
    first = leading.job(made)
    leading.plan(first, listing(a_png=1, b_png=1))
    leading.world.succeed(first, [0])
    leading.fire(hours=1)
    assert leading.plan(leading.job(made), listing(a_png=1, b_png=1)) == ["b.png"]


def test_a_cancelled_run_keeps_what_it_did(leading: Scheduling) -> None:
    made = leading.make(overlap=Overlap.CANCEL_PREVIOUS)
    leading.fire()
    first = leading.job(made)
    leading.plan(first, listing(a_png=1, b_png=1))
    leading.world.succeed(first, [0])
    assert leading.fire(hours=1).cancelled == (first,)
    assert leading.plan(leading.job(made), listing(a_png=1, b_png=1)) == ["b.png"]


def test_everything_is_done_each_time_where_that_is_wanted(leading: Scheduling) -> None:
    made = leading.make(only_new=False)
    for _ in range(2):
        assert leading.run(made, listing(a_png=1)) == ["a.png"]
    leading.scheduler.record(leading.epoch)
    assert leading.world.rows("SELECT count(*) FROM schedule_objects") == [(0,)]


def test_one_run_by_hand_may_do_everything(leading: Scheduling) -> None:
    made = leading.make()
    leading.run(made, listing(a_png=1))
    with leading.database.begin() as conn:
        run = run_now(conn, leading.tenant.tenant_id, made.schedule_id, RULES, only_new=False).run
    assert run.job_id is not None
    assert leading.plan(run.job_id, listing(a_png=1)) == ["a.png"]
    leading.finish(run.job_id)
    assert leading.run(made, listing(a_png=1)) == []


def test_schedules_know_nothing_of_one_another(leading: Scheduling) -> None:
    one = leading.make()
    leading.run(one, listing(a_png=1))
    leading.world.rows("UPDATE schedules SET next_at = NULL RETURNING 1")
    other = leading.make()
    assert leading.run(other, listing(a_png=1)) == ["a.png"]


def test_an_object_without_a_version_is_done_each_time(leading: Scheduling) -> None:
    made = leading.make()
    assert leading.run(made, {"a.png": ""}) == ["a.png"]
    assert leading.run(made, {"a.png": ""}) == ["a.png"]


def test_objects_are_forgotten_that_were_not_listed_for_long_and_no_others(leading: Scheduling) -> None:
    made = leading.make()
    leading.run(made, listing(gone_png=1, here_png=1))
    leading.scheduler.record(leading.epoch)
    leading.world.age("schedule_objects", "listed_at", (schedule_objects.KEPT + 1) * 86_400)
    assert leading.run(made, listing(here_png=1)) == [], "listing it says that it is still there"
    leading.scheduler.record(leading.epoch)
    assert leading.world.rows("SELECT count(*) FROM schedule_objects") == [(1,)]
    assert leading.run(made, listing(gone_png=1, here_png=1)) == ["gone.png"]


def test_an_old_month_stays_until_its_runs_are_written_down(leading: Scheduling) -> None:
    made = leading.make()
    leading.run(made, listing(a_png=1))
    with leading.database.begin() as conn:
        start = partitions.month_start(retention.now(conn))
        bounds = uuid7_floor(start), uuid7_floor(partitions.month_start(start, 1))
        assert retention.unfinished_jobs(conn, *bounds)
    leading.scheduler.record(leading.epoch)
    with leading.database.begin() as conn:
        assert not retention.unfinished_jobs(conn, *bounds)


@pytest.mark.parametrize("seed", range(3))
def test_against_a_model_every_version_of_every_page_succeeds_once(leading: Scheduling, seed: int) -> None:
    """A bucket that changes, pages that fail, redrives, a leader that may or may not write down: once each."""
    dice = random.Random(seed)
    made = leading.make(overlap=Overlap.ALLOW)
    bucket: dict[str, int] = {}
    succeeded: set[tuple[str, int, int | None]] = set()
    for _ in range(12):
        for name in ("a.png", "b.png", "x.pdf", "y.pdf"):
            if dice.random() < 0.3:
                bucket[name] = bucket.get(name, 0) + 1
        failing = [(name, page) for name in bucket for page in (None, 0, 1, 2) if dice.random() < 0.3]
        assert leading.fire().runs == {RunState.FIRED: 1}
        job = leading.job(made)
        leading.plan(job, {name: f"etag:{version}" for name, version in sorted(bucket.items())}, window=2)
        leading.page(job, 3)
        for asked in leading.items(job):
            name, _, page = asked.partition(":")
            key = (name, bucket[name], int(page) if page else None)
            assert key not in succeeded, f"{asked} has succeeded before"
            if key[::2] not in failing:
                succeeded.add(key)
        leading.finish(job, failing=failing)
        wanted = {
            (name, version, page)
            for name, version in bucket.items()
            for page in ((0, 1, 2) if name.endswith(".pdf") else (None,))
            if (name, page) not in failing
        }
        assert wanted <= succeeded, "what did not fail has been done by now"
        if failing and dice.random() < 0.3 and leading.world.states(job).get("failed"):
            with leading.database.begin() as conn:
                child = redrive.create(conn, leading.tenant.tenant_id, job, codes=None)
            for asked in leading.items(child):
                name, _, page = asked.partition(":")
                succeeded.add((name, bucket[name], int(page) if page else None))
            leading.finish(child)
        if dice.random() < 0.5:
            leading.scheduler.record(leading.epoch)
        leading.now += timedelta(hours=1)
