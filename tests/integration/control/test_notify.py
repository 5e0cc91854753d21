"""Webhooks from a job's end to a receiver: real PostgreSQL, a real server on loopback, the real courier."""

from __future__ import annotations

import itertools

import pytest
from sqlalchemy import Connection
from standardwebhooks import Webhook

from pipelines.control import cancel, webhooks
from pipelines.jobs.webhooks import SCHEDULE, EventType
from pipelines.store import leader, progress, webhook_deliveries, webhook_endpoints, webhook_retention
from pipelines.store.leader import LeaderLost
from pipelines.store.webhook_deliveries import Claimed
from tests.integration.control.office import LOOPBACK, TERMS, Office, deliveries, ended, endpoint, make_due
from tests.integration.control.receiver import Receiver, say
from tests.integration.store.world import World


def test_a_job_s_end_reaches_its_receiver_signed(world: World, office: Office, receiver: Receiver) -> None:
    tenant = world.tenant()
    made = endpoint(world, tenant, receiver.url)
    job = ended(world, tenant, metadata={"case": 17})
    assert office.send() == 1
    (taken,) = receiver.taken
    event = Webhook(made.secret).verify(taken.body, taken.headers)
    assert taken.headers["content-type"] == "application/json"
    assert event["object"] == "event"
    assert event["type"] == "job.succeeded"
    assert event["id"] == taken.headers["webhook-id"]
    data = event["data"]
    assert data["id"] == str(job)
    assert data["counts"] == {"succeeded": 1}
    assert data["metadata"] == {"case": 17}
    (delivery,) = deliveries(world)
    assert (delivery.state, delivery.attempt, delivery.last_status) == ("succeeded", 1, 200)
    assert office.send() == 0


def test_only_those_who_want_an_event_get_it(world: World, office: Office, receiver: Receiver) -> None:
    tenant, other = world.tenant(), world.tenant()
    wants = [
        endpoint(world, tenant, receiver.url + "/all"),
        endpoint(world, tenant, receiver.url + "/failed", "job.failed"),
        endpoint(world, tenant, receiver.url + "/succeeded", "job.failed", "job.succeeded"),
        endpoint(world, other, receiver.url + "/other"),
    ]
    named = endpoint(world, tenant, receiver.url + "/named", "job.failed").endpoint.endpoint_id
    with world.database.begin() as conn:
        webhook_endpoints.disable(conn, tenant, wants[0].endpoint.endpoint_id, reason="a test")
    ended(world, tenant, webhook_endpoint_id=named)
    office.send()
    assert sorted(taken.path for taken in receiver.taken) == ["/hook/named", "/hook/succeeded"]


def test_an_ended_job_has_one_event_whatever_happens_in_between(world: World) -> None:
    tenant = world.tenant()
    job = world.job(tenant, 2)
    world.succeed(job, [0])
    with world.database.begin() as conn:
        assert progress.finalise(conn, job) is None
    assert world.rows("SELECT 1 FROM webhook_events") == []
    world.succeed(job, [1])

    class Crash(Exception):
        """The process dies before it commits."""

    def die(conn: Connection) -> None:
        progress.finalise(conn, job)
        raise Crash

    with pytest.raises(Crash), world.database.begin() as conn:
        die(conn)
    assert world.rows("SELECT 1 FROM webhook_events") == []
    for _ in range(3):
        with world.database.begin() as conn:
            progress.finalise(conn, job)
    with world.database.begin() as conn:
        progress.fold(conn)
    cancelled = world.job(tenant, 3)
    with world.database.begin() as conn:
        cancel.request(conn, tenant, cancelled)
    found = world.rows("SELECT job_id, type, tenant_id FROM webhook_events ORDER BY created_at")
    assert [tuple(row) for row in found] == [(job, "job.succeeded", tenant), (cancelled, "job.cancelled", tenant)]


def test_a_failure_is_tried_again_by_the_schedule_and_then_given_up(
    world: World, office: Office, receiver: Receiver
) -> None:
    tenant = world.tenant()
    endpoint(world, tenant, receiver.url)
    receiver.answer = lambda handler: say(handler, 500, b"ouch\x00" + b"x" * 10_000)
    ended(world, tenant)
    for attempt in range(1, 10):
        assert office.send() == 1
        (row,) = world.rows("SELECT *, extract(epoch FROM next_at - now()) AS pause FROM webhook_deliveries")
        assert (row.state, row.attempt, row.last_status) == ("pending", attempt, 500)
        assert SCHEDULE[attempt] - 5 < row.pause <= SCHEDULE[attempt] * 1.1
        assert office.send() == 0
        make_due(world)
    office.send()
    (row,) = deliveries(world)
    assert (row.state, row.attempt) == ("failed", 10)
    assert len({taken.headers["webhook-id"] for taken in receiver.taken}) == 1
    assert len(receiver.taken) == 10
    attempts = world.rows("SELECT * FROM webhook_attempts ORDER BY attempt")
    assert [row.attempt for row in attempts] == list(range(1, 11))
    assert all(row.status == 500 and row.answer.startswith("ouch\ufffd") for row in attempts)
    assert all(len(row.answer) <= 1_000 for row in attempts)


def test_410_disables_the_endpoint_and_ends_what_waits(world: World, office: Office, receiver: Receiver) -> None:
    tenant = world.tenant()
    made = endpoint(world, tenant, receiver.url).endpoint
    ended(world, tenant)
    receiver.answer = lambda handler: say(handler, 500)
    office.send()
    ended(world, tenant)
    receiver.answer = lambda handler: say(handler, 410)
    office.send()
    with world.database.begin() as conn:
        found = webhook_endpoints.get(conn, tenant, made.endpoint_id)
    assert found is not None
    assert "410" in str(found.disabled_reason)
    assert [row.state for row in deliveries(world)] == ["failed", "failed"]
    ended(world, tenant)
    assert len(deliveries(world)) == 2
    with world.database.begin() as conn:
        webhooks.change(conn, tenant, made.endpoint_id, policy=LOOPBACK, enabled=True)
        since = world.rows("SELECT now() - interval '1 hour'")[0][0]
        assert webhooks.replay_failed(conn, tenant, made.endpoint_id, since=since) == 2
    receiver.answer = lambda handler: say(handler, 204)
    assert office.send() == 2
    with world.database.begin() as conn:
        assert webhooks.replay_failed(conn, tenant, made.endpoint_id, since=since) == 0


def test_a_sender_killed_before_it_records_is_made_up_for_under_the_same_id(
    world: World, office: Office, receiver: Receiver
) -> None:
    tenant = world.tenant()
    endpoint(world, tenant, receiver.url)
    ended(world, tenant)
    with world.database.begin() as conn:
        (lost,) = webhook_deliveries.claim(conn, limit=9, per_endpoint=9, per_tenant=9, lease=60)
    assert office.courier.send(lost).status == 200  # and now its process dies
    assert office.send() == 0
    world.age("webhook_deliveries", "lease_until", 61)
    assert office.send() == 1
    first, second = receiver.taken
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.body == second.body
    ends = world.rows("SELECT ended_at IS NULL FROM webhook_attempts ORDER BY attempt")
    assert [tuple(row) for row in ends] == [(True,), (False,)]
    with world.database.begin() as conn:  # the dead one was only frozen: its record comes too late
        assert not webhook_deliveries.record(conn, lost, state="failed", status=500, error="late", answer="")
    (row,) = deliveries(world)
    assert (row.state, row.attempt, row.last_status) == ("succeeded", 2, 200)


def test_a_former_leader_claims_nothing(world: World, office: Office, receiver: Receiver) -> None:
    tenant = world.tenant()
    endpoint(world, tenant, receiver.url)
    ended(world, tenant)
    world.age("leader", "lease_until", 120)
    with world.database.begin() as conn:
        assert leader.acquire(conn, "another", TERMS) is not None
    with pytest.raises(LeaderLost):
        office.notifier.tick(office.epoch)
    assert receiver.taken == []


def test_claims_leave_room_for_other_endpoints_and_tenants(world: World) -> None:
    busy, quiet = world.tenant(), world.tenant()
    for tenant, urls in ((busy, ("a", "b", "c")), (quiet, ("d",))):
        for url in urls:
            endpoint(world, tenant, f"https://{url}.example/")
        for _ in range(6):
            ended(world, tenant)

    def claim() -> list[Claimed]:
        with world.database.begin() as conn:
            return list(webhook_deliveries.claim(conn, limit=10, per_endpoint=3, per_tenant=7, lease=60))

    first = claim()
    assert len(first) == 10
    by_tenant = [one.tenant_id for one in first]
    assert (by_tenant.count(busy), by_tenant.count(quiet)) == (7, 3)
    counts = [len(list(group)) for _, group in itertools.groupby(sorted(one.url for one in first))]
    assert max(counts) <= 3
    assert claim() == []


def test_a_rotated_secret_signs_beside_the_new_one_until_its_time_is_over(
    world: World, office: Office, receiver: Receiver
) -> None:
    tenant = world.tenant()
    old = endpoint(world, tenant, receiver.url)
    key = old.endpoint.endpoint_id
    with world.database.begin() as conn:
        new = webhooks.rotate(conn, tenant, key, grace=3_600)
    ended(world, tenant)
    office.send()
    for secret in (old.secret, new.secret):
        assert Webhook(secret).verify(receiver.taken[0].body, receiver.taken[0].headers)
    world.age("webhook_secrets", "expires_at", 3_601, "expires_at IS NOT NULL")
    ended(world, tenant)
    office.send()
    assert receiver.taken[1].headers["webhook-signature"].count("v1,") == 1
    assert Webhook(new.secret).verify(receiver.taken[1].body, receiver.taken[1].headers)
    with world.database.begin() as conn:
        last = webhooks.rotate(conn, tenant, key, grace=0)
    ended(world, tenant)
    office.send()
    assert receiver.taken[2].headers["webhook-signature"].count("v1,") == 1
    assert Webhook(last.secret).verify(receiver.taken[2].body, receiver.taken[2].headers)


def test_a_sample_is_sent_once(world: World, office: Office, receiver: Receiver) -> None:
    tenant = world.tenant()
    made = endpoint(world, tenant, receiver.url, "job.failed").endpoint
    receiver.answer = lambda handler: say(handler, 503)
    with world.database.begin() as conn:
        webhooks.test(conn, tenant, made.endpoint_id, EventType.BATCH_EXPIRED)
    office.send()
    (row,) = deliveries(world)
    assert (row.state, row.attempt, row.last_status) == ("failed", 1, 503)
    assert receiver.taken[0].event["type"] == "batch.expired"


def test_the_log_goes_with_its_events_and_a_deleted_endpoint_after_its_log(
    world: World, office: Office, receiver: Receiver
) -> None:
    tenant = world.tenant()
    made = endpoint(world, tenant, receiver.url).endpoint
    old = ended(world, tenant)
    world.age("webhook_events", "created_at", 100)
    ended(world, tenant)
    office.send()
    with world.database.begin() as conn:
        webhooks.delete(conn, tenant, made.endpoint_id)
        assert webhook_retention.expire_events(conn, older_than=50) == 1
        assert webhook_retention.forget_endpoints(conn) == 0
    tables = ("webhook_events", "webhook_deliveries", "webhook_attempts", "webhook_endpoints")
    assert [len(world.rows(f"SELECT 1 FROM {table}")) for table in tables] == [1, 1, 1, 1]
    assert world.rows("SELECT 1 FROM webhook_events WHERE job_id = %(j)s", j=old) == []
    assert world.rows("SELECT 1 FROM webhook_secrets") == []
    with world.database.begin() as conn:
        assert webhook_retention.expire_events(conn, older_than=-50) == 1
        assert webhook_retention.forget_endpoints(conn) == 1
    assert [len(world.rows(f"SELECT 1 FROM {table}")) for table in tables] == [0, 0, 0, 0]
