"""Schedules fire once and surely, whatever leaders do, and keep to their policies."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from pipelines.control import schedule
from pipelines.control.firing import Scheduler, fire_one
from pipelines.control.schedule import Changes
from pipelines.control.template import JobTemplate
from pipelines.jobs.errors import ExportForbidden
from pipelines.jobs.exports import ExportOptions
from pipelines.jobs.models import JobPriority
from pipelines.jobs.schedules import CatchUp, Overlap, RunState, RunTrigger
from pipelines.jobs.states import JobState
from pipelines.steps.submit import Submission
from pipelines.store import jobs, schedules
from pipelines.store.leader import LeaderLost
from tests.integration.control.scheduling import PREFIX, RULES, Scheduling
from tests.integration.store.world import World

FIRED, SKIPPED, MISSED, FAILED = RunState.FIRED, RunState.SKIPPED, RunState.MISSED, RunState.FAILED


@pytest.fixture
def leading(world: World) -> Scheduling:
    return Scheduling(world)


def test_a_due_schedule_becomes_a_job_with_the_dates_of_its_time(leading: Scheduling) -> None:
    made = leading.make(source={"type": "prefix", "url": "s3://scans/{date:%Y/%m/%d/%H}/{yesterday}/"})
    leading.now = datetime(2026, 3, 29, 1, tzinfo=UTC)  # 03:00 in Berlin, an hour after the clock changed
    leading.world.rows("UPDATE schedules SET timezone = 'Europe/Berlin' RETURNING 1")
    leading.due_at(made.schedule_id, leading.now)
    assert leading.fire(minutes=2).runs == {FIRED: 1}
    (run,) = leading.runs(made)
    assert (run.trigger, run.scheduled_at) == (RunTrigger.CRON, datetime(2026, 3, 29, 1, tzinfo=UTC))
    with leading.database.begin() as conn:
        job = jobs.get_job(conn, leading.tenant.tenant_id, leading.job(made))
        after = schedules.get(conn, leading.tenant.tenant_id, made.schedule_id)
    assert job is not None
    assert after is not None
    assert job.source["url"] == "s3://scans/2026/03/29/03/2026-03-28/"
    assert (job.schedule_id, job.schedule_run_id) == (made.schedule_id, run.run_id)
    assert (job.state, job.priority) == (JobState.QUEUED, JobPriority.NORMAL)
    assert after.next_at == datetime(2026, 3, 29, 2, tzinfo=UTC)
    assert leading.fire().runs == {}


def test_each_run_is_exported_to_the_folder_of_its_day(leading: Scheduling) -> None:
    made = leading.make()
    submission = Submission(
        kind="ocr", parameters={}, source=PREFIX, export=ExportOptions(url="s3://results/{date}/", shard_rows=500)
    )
    template = JobTemplate(submission=submission, deadline_seconds=7_200)
    with leading.database.begin() as conn:
        schedule.change(conn, leading.tenant, made.schedule_id, Changes(template=template), RULES)
    leading.fire()
    assert leading.states(made) == [FIRED]
    day = leading.now.date().isoformat()
    assert leading.world.rows("SELECT url, options->>'shard_rows' FROM exports") == [(f"s3://results/{day}/", "500")]
    assert leading.world.rows("SELECT deadline_at FROM jobs") == [(leading.now + timedelta(hours=2),)]
    secret = JobTemplate(submission=replace(submission, export=ExportOptions(url="s3://secrets/{date}/")))
    with pytest.raises(ExportForbidden), leading.database.begin() as conn:
        schedule.change(conn, leading.tenant, made.schedule_id, Changes(template=secret), RULES)


def test_two_leaders_at_once_fire_each_time_once(leading: Scheduling) -> None:
    made = [leading.make(overlap=Overlap.ALLOW, catch_up=CatchUp.ALL) for _ in range(8)]
    now = leading.now + timedelta(hours=3, minutes=1)
    failures: list[BaseException] = []
    together = threading.Barrier(4)

    def lead() -> None:
        scheduler = Scheduler(leading.database, RULES)
        together.wait()
        try:
            for _ in range(3):
                scheduler.fire(leading.epoch, now=now)  # the frozen leader's epoch check has passed, say
        except BaseException as error:  # noqa: BLE001 - shown below
            failures.append(error)

    threads = [threading.Thread(target=lead) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for each in made:
        runs = leading.runs(each)
        assert [run.scheduled_at for run in runs] == [leading.now + timedelta(hours=n) for n in range(4)]
        assert {run.state for run in runs} == {FIRED}
    assert leading.world.rows("SELECT count(*), count(DISTINCT schedule_run_id) FROM jobs") == [(32, 32)]


def test_a_crash_before_the_commit_leaves_the_time_due_and_nothing_else(leading: Scheduling) -> None:
    made = leading.make()

    def killed() -> None:
        with leading.database.begin() as conn:
            assert fire_one(conn, made.schedule_id, leading.now, RULES).runs == {FIRED: 1}
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        killed()
    assert leading.runs(made) == []
    assert leading.world.rows("SELECT count(*) FROM jobs") == [(0,)]
    assert leading.fire().runs == {FIRED: 1}
    assert leading.states(made) == [FIRED]


def test_a_time_that_stands_in_the_history_is_never_fired_again(leading: Scheduling) -> None:
    made = leading.make(overlap=Overlap.ALLOW)
    leading.fire()
    leading.due_at(made.schedule_id, leading.now)  # as a restored backup might have it
    assert leading.fire().runs == {}
    assert leading.world.rows("SELECT count(*) FROM jobs") == [(1,)]


def test_a_leader_that_was_replaced_fires_nothing(leading: Scheduling) -> None:
    leading.make()
    leading.world.rows("UPDATE leader SET epoch = epoch + 1 RETURNING 1")
    with pytest.raises(LeaderLost):
        leading.fire()
    assert leading.world.rows("SELECT count(*) FROM jobs") == [(0,)]


def test_while_a_run_is_going_a_time_is_skipped_and_says_so(leading: Scheduling) -> None:
    made = leading.make()
    leading.fire()
    job = leading.job(made)
    assert leading.fire(hours=1).runs == {SKIPPED: 1}
    assert str(job) in (leading.runs(made)[-1].error_message or "")
    leading.plan(job, {})
    leading.finish(job)
    assert leading.runs(made)[0].job_state is JobState.SUCCEEDED, "there was nothing to do"
    assert leading.fire(hours=1).runs == {FIRED: 1}


def test_runs_may_overlap_or_cancel_the_one_before(leading: Scheduling) -> None:
    both, newest = leading.make(overlap=Overlap.ALLOW), leading.make(overlap=Overlap.CANCEL_PREVIOUS)
    leading.fire()
    first = leading.job(newest)
    fired = leading.fire(hours=1)
    assert fired.runs == {FIRED: 2}
    assert fired.cancelled == (first,)
    assert [run.job_state for run in leading.runs(both)] == [JobState.QUEUED, JobState.QUEUED]
    assert [run.job_state for run in leading.runs(newest)] == [JobState.CANCELLED, JobState.QUEUED]


@pytest.mark.parametrize(
    ("catch_up", "states"),
    [(CatchUp.NONE, [MISSED]), (CatchUp.LAST, [MISSED, FIRED]), (CatchUp.ALL, [MISSED, FIRED, FIRED])],
)
def test_after_an_outage_times_are_made_up_for(leading: Scheduling, catch_up: CatchUp, states: list[RunState]) -> None:
    made = leading.make(catch_up=catch_up, catch_up_limit=2, overlap=Overlap.ALLOW)
    leading.fire(hours=4, minutes=30)
    assert leading.states(made) == states
    missed = leading.runs(made)[0]
    assert str({CatchUp.NONE: 5, CatchUp.LAST: 4, CatchUp.ALL: 3}[catch_up]) in (missed.error_message or "")
    assert leading.fire(minutes=29).runs == {}
    leading.fire(minutes=1)
    assert leading.states(made) == [*states, FIRED]


def test_times_that_are_made_up_for_wait_for_one_another(leading: Scheduling) -> None:
    made = leading.make(catch_up=CatchUp.ALL)
    leading.fire(hours=2, minutes=30)
    for count in (1, 2, 3):
        assert leading.states(made) == [FIRED] * count
        assert leading.fire(seconds=1).runs == {}
        job = leading.job(made)
        leading.plan(job, {})
        leading.finish(job)
        leading.fire(seconds=1)
    assert leading.states(made) == [FIRED] * 3
    start = leading.runs(made)[0].scheduled_at
    assert [run.scheduled_at - start for run in leading.runs(made)] == [timedelta(hours=n) for n in range(3)]


def test_a_refused_job_is_a_failed_run_and_the_next_time_is_tried(leading: Scheduling) -> None:
    made, other = leading.make(), leading.make()
    leading.world.rows(
        "UPDATE schedules SET template = jsonb_set(template, '{kind}', '\"gone\"') WHERE id = %(s)s RETURNING 1",
        s=made.schedule_id,
    )
    assert leading.fire().runs == {FAILED: 1, FIRED: 1}
    (run,) = leading.runs(made)
    assert (run.error_code, run.job_id) == ("unknown_kind", None)
    assert leading.states(other) == [FIRED]
    leading.world.rows("UPDATE schedules SET template = jsonb_set(template, '{kind}', '\"ocr\"') RETURNING 1")
    leading.fire(hours=1)
    assert leading.states(made) == [FAILED, FIRED]


def test_a_defect_in_one_schedule_holds_up_no_other(leading: Scheduling) -> None:
    broken, other = leading.make(), leading.make()
    leading.world.rows("UPDATE schedules SET template = '{}' WHERE id = %(s)s RETURNING 1", s=broken.schedule_id)
    leading.fire()
    assert [run.error_code for run in leading.runs(broken)] == ["internal_error"]
    assert leading.states(other) == [FIRED]


def test_a_zone_that_is_known_no_more_stops_the_schedule_and_says_so(leading: Scheduling) -> None:
    made = leading.make()
    leading.world.rows("UPDATE schedules SET timezone = 'Europe/Atlantis' RETURNING 1")
    leading.fire()
    assert [run.error_code for run in leading.runs(made)] == ["invalid_parameter"]
    assert leading.world.rows("SELECT next_at FROM schedules") == [(None,)]


def test_a_quota_that_is_used_up_is_a_failed_run(world: World) -> None:
    leading = Scheduling(world, max_active_items=2)
    made = leading.make(overlap=Overlap.ALLOW)
    leading.fire()
    leading.plan(leading.job(made), {"a.png": "etag:1", "b.png": "etag:1"})
    leading.world.rows("UPDATE job_progress SET item_count = 2 RETURNING 1")
    leading.fire(hours=1)
    assert [run.error_code for run in leading.runs(made)] == [None, "quota_exceeded"]


def test_a_tenant_that_is_switched_off_fires_nothing_until_it_is_back(leading: Scheduling) -> None:
    made = leading.make()
    leading.world.rows("UPDATE tenants SET disabled_at = now() RETURNING 1")
    assert leading.fire().runs == {}
    leading.world.rows("UPDATE tenants SET disabled_at = NULL RETURNING 1")
    leading.fire(hours=2, minutes=30)
    assert leading.states(made) == [MISSED, FIRED]
