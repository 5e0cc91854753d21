"""What owners do with schedules: make, change, pause, run by hand, delete; and what is forgotten in the end."""

from __future__ import annotations

from datetime import timedelta

import pytest

from pipelines.control import schedule
from pipelines.control.firing import Scheduler
from pipelines.control.schedule import Changes
from pipelines.control.template import JobTemplate
from pipelines.jobs.errors import Conflict, InvalidParameter, NotFound, QuotaExceeded, SourceForbidden
from pipelines.jobs.schedules import Overlap, RunState, RunTrigger, ScheduleRules
from pipelines.jobs.states import JobState
from pipelines.steps.submit import Submission
from pipelines.store import leader, schedule_runs, schedules, tenants
from tests.integration.control.scheduling import PREFIX, RULES, Scheduling
from tests.integration.store.world import World

FIRED = RunState.FIRED


@pytest.fixture
def leading(world: World) -> Scheduling:
    return Scheduling(world)


def test_what_no_schedule_can_be_is_refused_when_it_is_made(leading: Scheduling) -> None:
    for source, error in (
        ({"type": "prefix", "url": "s3://secrets/{date}/"}, SourceForbidden),
        ({"type": "prefix", "url": "s3://scans/{dtae}/"}, InvalidParameter),
    ):
        with pytest.raises(error):
            leading.make(source=source)
    with pytest.raises(InvalidParameter, match="only_new"):
        leading.make(source={"type": "media", "media": [{"url": "s3://scans/a.png"}]}, only_new=True)
    leading.make(name="nightly")
    with pytest.raises(Conflict):
        leading.make(name="nightly")
    with pytest.raises(QuotaExceeded), leading.database.begin() as conn:
        schedule.create(
            conn,
            leading.tenant,
            name="one more",
            rules=ScheduleRules(cron="0 0 * * *", timezone="UTC"),
            template=JobTemplate(submission=Submission(kind="ocr", parameters={}, source=PREFIX)),
            paused=False,
            submit_rules=RULES,
            most=1,
        )


def test_a_paused_schedule_fires_nothing_and_misses_nothing(leading: Scheduling) -> None:
    made = leading.make()
    tenant = leading.tenant.tenant_id
    with leading.database.begin() as conn:
        paused = schedule.pause(conn, tenant, made.schedule_id)
    assert (paused.next_at, paused.paused_at is None) == (None, False)
    assert leading.fire(hours=5).runs == {}
    with leading.database.begin() as conn:
        resumed = schedule.resume(conn, tenant, made.schedule_id)
        assert resumed.next_at is not None
        assert resumed.next_at > schedules.now(conn)
    assert leading.states(made) == []


def test_a_change_counts_from_now_on(leading: Scheduling) -> None:
    made = leading.make()
    with leading.database.begin() as conn:
        changed = schedule.change(conn, leading.tenant, made.schedule_id, Changes(rules={"cron": "30  2 * * *"}), RULES)
        now = schedules.now(conn)
    assert changed.rules.cron == "30 2 * * *"
    assert changed.next_at is not None
    assert now < changed.next_at <= now + timedelta(days=1)
    with leading.database.begin() as conn:
        media = {"type": "media", "media": [{"url": "s3://scans/{date}.png"}]}
        template = JobTemplate(submission=Submission(kind="ocr", parameters={}, source=media))
        changed = schedule.change(conn, leading.tenant, made.schedule_id, Changes(template=template, name="b"), RULES)
    assert (changed.name, changed.rules.only_new) == ("b", False), "only a listing has versions"


def test_nobody_elses_schedule_is_seen_or_changed(leading: Scheduling) -> None:
    made = leading.make()
    with leading.database.begin() as conn:
        other = tenants.get_tenant(conn, leading.world.tenant())
    assert other is not None
    stranger = other.tenant_id
    with leading.database.begin() as conn:
        assert schedules.get(conn, stranger, made.schedule_id) is None
        assert schedules.list_schedules(conn, stranger, limit=10) == ()
        assert schedule_runs.list_runs(conn, stranger, made.schedule_id, limit=10) == ()
    for attempt in (
        lambda conn: schedule.change(conn, other, made.schedule_id, Changes(name="x"), RULES),
        lambda conn: schedule.pause(conn, stranger, made.schedule_id),
        lambda conn: schedule.resume(conn, stranger, made.schedule_id),
        lambda conn: schedule.run_now(conn, stranger, made.schedule_id, RULES),
        lambda conn: schedule.delete(conn, stranger, made.schedule_id),
    ):
        with pytest.raises(NotFound), leading.database.begin() as conn:
            attempt(conn)


def test_a_run_by_hand_stands_beside_the_cron(leading: Scheduling) -> None:
    made = leading.make()
    tenant = leading.tenant.tenant_id
    with leading.database.begin() as conn:
        schedule.pause(conn, tenant, made.schedule_id)
        run = schedule.run_now(conn, tenant, made.schedule_id, RULES).run
    assert (run.trigger, run.state, run.job_state) == (RunTrigger.MANUAL, FIRED, JobState.QUEUED)
    with pytest.raises(Conflict), leading.database.begin() as conn:
        schedule.run_now(conn, tenant, made.schedule_id, RULES)
    leading.world.rows("UPDATE schedules SET overlap = 'cancel_previous' RETURNING 1")
    with leading.database.begin() as conn:
        again = schedule.run_now(conn, tenant, made.schedule_id, RULES)
    assert again.cancelled == (run.job_id,)


def test_a_deleted_schedule_is_forgotten_once_its_jobs_have_ended(leading: Scheduling) -> None:
    made = leading.make(name="nightly")
    leading.fire()
    job = leading.job(made)
    leading.plan(job, {"a.png": "etag:1"})
    with leading.database.begin() as conn:
        schedule.delete(conn, leading.tenant.tenant_id, made.schedule_id)
    leading.make(name="nightly")  # the name is free at once
    assert leading.world.rows("SELECT count(*) FROM schedule_runs") == [(1,)]
    forget(leading)
    assert leading.world.rows("SELECT count(*) FROM schedules") == [(2,)], "its job still runs"
    leading.finish(job)
    leading.scheduler.record(leading.epoch)
    forget(leading)
    assert leading.world.rows("SELECT count(*) FROM schedules") == [(1,)]
    assert leading.world.rows("SELECT count(*) FROM schedule_runs") == [(0,)]
    assert leading.world.rows("SELECT state, schedule_id IS NOT NULL FROM jobs") == [("succeeded", True)]


def test_old_history_is_forgotten_but_the_newest_run(leading: Scheduling) -> None:
    made = leading.make(overlap=Overlap.ALLOW)
    for _ in range(3):
        leading.fire(hours=1 if leading.states(made) else 0)
        leading.plan(leading.job(made), {})
        leading.finish(leading.job(made))
    leading.scheduler.record(leading.epoch)
    with leading.database.begin() as conn:
        later = schedules.now(conn) + timedelta(days=1)
        assert schedule_runs.expire(conn, before=later) == 2
    assert [run.scheduled_at for run in leading.runs(made)] == [leading.now]


def test_a_leader_that_died_is_followed_by_one_that_goes_on(leading: Scheduling) -> None:
    made = leading.make()
    with leading.database.begin() as conn:
        leader.resign(conn, leading.epoch)
    leading.world.age("leader", "lease_until", 1)
    with leading.database.begin() as conn:
        following = leader.acquire(conn, "other", leading.epoch.terms)
    assert following is not None
    Scheduler(leading.database, RULES).fire(following, now=leading.now)
    assert leading.states(made) == [FIRED]


def forget(leading: Scheduling) -> None:
    while True:
        with leading.database.begin() as conn:
            if not schedules.forget(conn):
                return
