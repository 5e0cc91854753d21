"""Tenants and keys, idempotency keys, the worker registry, jobs as clients list them."""

from __future__ import annotations

import threading
import uuid
from datetime import UTC, datetime, timedelta

import pytest

from pipelines.jobs.errors import Conflict, IdempotencyInFlight, IdempotencyMismatch, NotFound, Unauthenticated
from pipelines.jobs.ids import uuid7
from pipelines.jobs.states import JobState
from pipelines.store import idempotency, jobs, tenants, workers
from pipelines.store.idempotency import Replay
from tests.integration.store.world import World

PEPPER = "p" * 32


def new_key(world: World, tenant: uuid.UUID, *, expires_at: datetime | None = None) -> tenants.NewKey:
    with world.database.begin() as conn:
        return tenants.create_key(conn, tenant, name="ci", scopes=["jobs:read"], expires_at=expires_at, pepper=PEPPER)


def authenticated(world: World, presented: str, pepper: str = PEPPER) -> tenants.Principal:
    with world.database.begin() as conn:
        return tenants.authenticate(conn, presented, pepper=pepper)


def test_a_key_opens_its_tenant_and_only_as_a_whole(world: World) -> None:
    tenant = world.tenant(weight=2.5, allowed_buckets=["scans"])
    key = new_key(world, tenant)
    principal = authenticated(world, key.secret)
    assert (principal.tenant_id, principal.key_id, principal.scopes) == (tenant, key.key_id, frozenset({"jobs:read"}))
    assert (principal.tenant.weight, principal.tenant.allowed_buckets) == (2.5, ("scans",))
    wrong = [
        "",
        "bs_",
        "bs__",
        f"bs_{key.prefix}_",
        f"bs_{key.prefix}_wrong",
        key.secret[:-1],
        key.secret + "x",
        key.secret.upper(),
        "sk-" + key.secret,
        "bs_\x00_x",
        "bs_ü_x",
        "x" * 10_000,
    ]
    for presented in wrong:
        with pytest.raises(Unauthenticated):
            authenticated(world, presented)
    with pytest.raises(Unauthenticated):
        authenticated(world, key.secret, pepper="q" * 32)


def test_the_database_holds_nothing_that_opens_anything(world: World) -> None:
    key = new_key(world, world.tenant())
    (row,) = world.rows("SELECT prefix, digest FROM api_keys")
    secret = key.secret.split("_", 2)[2]
    assert secret not in str(row)
    assert len(secret) >= 43  # 256 bits


def test_an_expired_a_revoked_and_a_disabled_key_open_nothing(world: World) -> None:
    tenant = world.tenant()
    expired = new_key(world, tenant, expires_at=datetime.now(UTC) - timedelta(seconds=1))
    revoked, good = new_key(world, tenant), new_key(world, tenant)
    with world.database.begin() as conn:
        assert not tenants.revoke_key(conn, world.tenant(), revoked.key_id)
        assert tenants.revoke_key(conn, tenant, revoked.key_id)
        assert not tenants.revoke_key(conn, tenant, revoked.key_id)
        assert [key.revoked_at is not None for key in tenants.list_keys(conn, tenant)] == [False, True, False]
    for key in (expired, revoked):
        with pytest.raises(Unauthenticated):
            authenticated(world, key.secret)
    authenticated(world, good.secret)
    with world.database.begin() as conn:
        tenants.set_disabled(conn, tenant, disabled=True)
    with pytest.raises(Unauthenticated):
        authenticated(world, good.secret)
    with world.database.begin() as conn:
        tenants.set_disabled(conn, tenant, disabled=False)
    authenticated(world, good.secret)


def test_tenants_are_found_and_named_once(world: World) -> None:
    with world.database.begin() as conn:
        made = tenants.create_tenant(conn, "acme", max_active_items=5)
        assert tenants.get_tenant(conn, made.tenant_id) == tenants.find_tenant(conn, "acme") == made
        assert tenants.list_tenants(conn) == (made,)
        assert tenants.find_tenant(conn, "nobody") is None
    with pytest.raises(Conflict), world.database.begin() as conn:
        tenants.create_tenant(conn, "acme")
    for refused in (
        lambda conn: tenants.create_key(conn, uuid7(), name="x", scopes=[], pepper=PEPPER),
        lambda conn: tenants.set_disabled(conn, uuid7(), disabled=True),
    ):
        with pytest.raises(NotFound), world.database.begin() as conn:
            refused(conn)


def test_active_items_are_those_that_have_not_ended(world: World) -> None:
    tenant = world.tenant()
    world.job(tenant, 7)
    done = world.job(tenant, 1)
    world.job(world.tenant(), 3)
    world.rows("UPDATE jobs SET state = 'succeeded', finished_at = now() WHERE id = %(j)s RETURNING 1", j=done)
    world.rows("""UPDATE job_progress SET counts = '{"succeeded": 2}' RETURNING 1""")
    with world.database.begin() as conn:
        assert tenants.active_items(conn, tenant) == 5
        assert tenants.active_items(conn, uuid7()) == 0


def begin(world: World, tenant: uuid.UUID, fingerprint: bytes = b"a") -> Replay | None:
    with world.database.begin() as conn:
        found = idempotency.begin(conn, tenant, "key", fingerprint=fingerprint, keep=60)
        if found is None:
            idempotency.finish(conn, tenant, "key", status=202, response={"id": 1})
        return found


def test_the_same_request_twice_is_answered_once(world: World) -> None:
    tenant = world.tenant()
    assert begin(world, tenant) is None
    assert begin(world, tenant) == Replay(status=202, response={"id": 1})
    assert begin(world, world.tenant()) is None  # another tenant's key is another key
    with pytest.raises(IdempotencyMismatch):
        begin(world, tenant, b"b")


def test_a_request_in_flight_is_told_and_one_that_died_leaves_nothing(world: World) -> None:
    tenant = world.tenant()
    with world.database.begin() as first:
        assert idempotency.begin(first, tenant, "key", fingerprint=b"a", keep=60) is None
        with pytest.raises(IdempotencyInFlight):
            begin(world, tenant)
        first.rollback()
    assert begin(world, tenant) is None


def test_of_many_at_once_exactly_one_does_the_work(world: World) -> None:
    tenant = world.tenant()
    outcomes: list[str] = []

    def work() -> None:
        try:
            outcomes.append("worked" if begin(world, tenant) is None else "replayed")
        except IdempotencyInFlight:
            outcomes.append("in flight")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("worked") == 1


def test_an_expired_key_is_forgotten(world: World) -> None:
    tenant = world.tenant()
    begin(world, tenant)
    world.age("idempotency_keys", "expires_at", 61)
    assert begin(world, tenant, b"b") is None
    world.age("idempotency_keys", "expires_at", 61)
    with world.database.begin() as conn:
        assert idempotency.expire(conn) == 1
        assert idempotency.expire(conn) == 0


def test_workers_come_and_go(world: World) -> None:
    one = workers.Worker(worker_id="gpu@a:1", role="gpu", slots=16, engine={"model": "m"})
    with world.database.begin() as conn:
        workers.announce(conn, one)
        workers.announce(conn, workers.Worker(worker_id="cpu@a:2", role="cpu", slots=4, draining=True))
    world.age("workers", "seen_at", 30, "id = 'gpu@a:1'")
    with world.database.begin() as conn:
        assert [worker.worker_id for worker in workers.list_workers(conn, within=15)] == ["cpu@a:2"]
        assert len(workers.list_workers(conn, within=60)) == 2
        assert workers.expire(conn, older_than=20) == 1
        workers.forget(conn, "cpu@a:2")
        assert workers.list_workers(conn, within=60) == ()


def test_jobs_are_listed_newest_first_page_by_page_and_filtered(world: World) -> None:
    tenant = world.tenant()
    made = [world.submitted(tenant, metadata={"n": n % 2}) for n in range(5)]
    world.submitted(world.tenant())
    with world.database.begin() as conn:

        def listed(**filters: object) -> list[uuid.UUID]:
            found = jobs.list_jobs(conn, tenant, **{"limit": 10, **filters})  # type: ignore[arg-type]
            return [job.job_id for job in found]

        assert listed() == made[::-1]
        assert listed(limit=2) == [made[4], made[3]]
        assert listed(limit=2, before=made[3]) == [made[2], made[1]]
        assert listed(metadata={"n": 1}) == [made[3], made[1]]
        assert listed(states=[JobState.RUNNING]) == []
        assert listed(states=[JobState.QUEUED, JobState.RUNNING]) == made[::-1]
        assert listed(kind="caption") == []
        assert listed(created_until=datetime.now(UTC) - timedelta(hours=1)) == []
        assert listed(created_from=datetime.now(UTC) - timedelta(hours=1), kind="ocr") == made[::-1]
        assert jobs.get_job(conn, world.tenant(), made[0]) is None


def test_a_spec_carries_what_the_tenant_may_read(world: World) -> None:
    job = world.submitted(world.tenant(allowed_buckets=["a", "b/c"]))
    with world.database.begin() as conn:
        spec = jobs.get_spec(conn, job)
        assert spec is not None
        assert spec.allowed_buckets == ("a", "b/c")
        assert jobs.get_spec(conn, uuid7()) is None
