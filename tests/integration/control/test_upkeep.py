"""Leadership, sweeps, retention and partitions, as the leader runs them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from pipelines.blobs.base import BlobStat
from pipelines.control.exports.target import folder_of
from pipelines.control.leadership import Leadership, terms
from pipelines.control.retention import Retention
from pipelines.control.sweep import Upkeep
from pipelines.jobs.errors import BlobStoreUnavailable, StoreUnavailable
from pipelines.jobs.exports import ExportOptions
from pipelines.jobs.ids import uuid7_floor
from pipelines.jobs.models import PackRef
from pipelines.jobs.states import JobState
from pipelines.store import exports, files, jobs, leader, packs, partitions
from pipelines.store.files import NewFile
from pipelines.store.leader import Epoch, LeaderLost, Terms
from pipelines.store.session import Database
from tests.integration.store.world import World


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def epoch(world: World) -> Epoch:
    with world.database.begin() as conn:
        found = leader.acquire(conn, "test", Terms(lease=60, grace=60, gap=60))
    assert found is not None
    world.age("leader", "losses_from", 61)
    return found


def test_a_standby_takes_over_when_the_leader_is_silent_or_gives_back(world: World) -> None:
    clock = Clock()
    one = Leadership(world.database, "one", terms(leader_lease=5, item_lease=60), clock=clock)
    other = Leadership(world.database, "other", terms(leader_lease=5, item_lease=60), clock=clock)
    assert one.step()
    assert not other.step()
    assert (one.epoch() is not None, other.epoch() is not None) == (True, False)
    world.age("leader", "lease_until", 6)
    assert other.step()
    assert not one.step()
    assert one.epoch() is None
    other.resign()
    assert other.epoch() is None
    assert one.step()


def test_a_leader_without_contact_does_nothing_after_its_lease(world: World) -> None:
    clock = Clock()
    leading = Leadership(world.database, "one", terms(leader_lease=5, item_lease=60), clock=clock)
    leading.step()
    clock.now += 4.9
    assert leading.epoch() is not None
    clock.now += 0.2
    assert leading.epoch() is None
    assert leading.step()
    assert leading.epoch() is not None


def test_a_database_that_is_away_is_said_so() -> None:
    away = Database("postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(StoreUnavailable):
        Leadership(away, "one", terms(leader_lease=5, item_lease=60)).step()


def test_the_terms_leave_workers_a_beat_and_the_leader_two_renewals() -> None:
    assert terms(leader_lease=5, item_lease=60) == Terms(lease=5, grace=60, gap=15)
    assert terms(leader_lease=6, item_lease=4).gap == 4


def test_a_sweep_waits_out_the_grace_and_then_counts(world: World, epoch: Epoch) -> None:
    job = world.job(world.tenant(), 2)
    world.claim(job, [0, 1])
    world.age("items", "lease_until", 61)
    upkeep = Upkeep(world.database, redispatch_after=60)
    world.rows("UPDATE leader SET losses_from = now() + interval '1 min' RETURNING 1")
    assert upkeep.sweep(epoch).items == 0
    world.age("leader", "losses_from", 61)
    assert upkeep.sweep(epoch).items == 2
    assert world.states(job) == {"pending": 2}


def test_a_sweep_ends_what_is_overdue_requeues_what_is_lost_and_finishes_jobs(world: World, epoch: Epoch) -> None:
    tenant = world.tenant()
    late, done = world.job(tenant, 3), world.job(tenant, 1)
    world.succeed(done, [0])
    hinted = world.job(tenant, 1)
    world.rows("UPDATE items SET enqueued_at = now() - interval '2 min' WHERE job_id = %(j)s RETURNING 1", j=hinted)
    world.rows("UPDATE jobs SET deadline_at = now() WHERE id = %(j)s RETURNING 1", j=late)
    swept = Upkeep(world.database, redispatch_after=60, batch=2).sweep(epoch)
    assert (swept.overdue, swept.requeued) == (3, 1)
    with world.database.begin() as conn:
        ended = {job: jobs.get_job(conn, tenant, job) for job in (late, done, hinted)}
    assert {job: found.state for job, found in ended.items() if found} == {
        late: JobState.FAILED,
        done: JobState.SUCCEEDED,
        hinted: JobState.PLANNING,
    }


def test_a_fold_ends_the_jobs_that_it_finds_over(world: World, epoch: Epoch) -> None:
    tenant = world.tenant()
    job = world.job(tenant, 1)
    world.succeed(job, [0])
    folded = Upkeep(world.database, redispatch_after=60).fold(epoch)
    assert folded.finished == (job,)
    with world.database.begin() as conn:
        found = jobs.get_job(conn, tenant, job)
    assert found is not None
    assert found.state is JobState.SUCCEEDED


def test_a_replaced_leader_can_do_none_of_it(world: World, epoch: Epoch) -> None:
    world.job(world.tenant(), 1)
    world.age("leader", "lease_until", 61)
    with world.database.begin() as conn:
        assert leader.acquire(conn, "other", epoch.terms) is not None
    upkeep = Upkeep(world.database, redispatch_after=60)
    for refused in (upkeep.sweep, upkeep.cancel, upkeep.end_finished, upkeep.fold):
        with pytest.raises(LeaderLost):
            refused(epoch)


class Blobs:
    """The part of a blob store that retention uses."""

    def __init__(self, prefix: str = "packs/", **ages: float) -> None:
        self.blobs = {f"{prefix}{name}": age for name, age in ages.items()}
        self.away = False

    def delete(self, key: str) -> None:
        if self.away:
            raise BlobStoreUnavailable("away")
        self.blobs.pop(key, None)

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[BlobStat]:
        for key, age in sorted(self.blobs.items()):
            if key.startswith(prefix) and key > start_after:
                yield BlobStat(key=key, size=1, modified=datetime.now(UTC) - timedelta(seconds=age))


def retention(world: World, blobs: Blobs, days: int = 30) -> Retention:
    return Retention(world.database, delete_blob=blobs.delete, list_blobs=blobs.list, days=days)


def old_id(month: datetime, n: int = 0) -> uuid.UUID:
    return uuid.UUID(int=uuid7_floor(month).int + (86_400_000 << 80) | (0x7 << 76) | (0b10 << 62) + n)


def names(world: World) -> set[str]:
    with world.database.begin() as conn:
        return {month.name for month in partitions.list_months(conn)}


OLD, BUSY = datetime(2021, 3, 1, tzinfo=UTC), datetime(2021, 4, 1, tzinfo=UTC)


def test_old_months_go_with_their_jobs_unless_one_is_unfinished(world: World, epoch: Epoch) -> None:
    tenant = world.tenant()
    with world.database.begin() as conn:
        assert set(partitions.create_month(conn, OLD)) == {"documents_202103", "items_202103", "results_202103"}
        partitions.create_month(conn, BUSY)
        assert partitions.create_month(conn, BUSY) == ()
    old, busy = world.job(tenant, 2, job_id=old_id(OLD)), world.job(tenant, 2, job_id=old_id(BUSY))
    young = world.job(tenant, 1)
    world.succeed(old, [0, 1])
    upkeep = Upkeep(world.database, redispatch_after=60)
    upkeep.end_finished(epoch)
    assert world.rows("SELECT count(*) FROM items_202103")[0][0] == 2
    done = retention(world, Blobs()).run(epoch)
    assert (done.partitions_dropped, done.jobs) == (3, 1)
    assert not any("202103" in name for name in names(world))
    assert {"items_202104", f"items_{datetime.now(UTC):%Y%m}"} <= names(world)
    with world.database.begin() as conn:
        assert jobs.get_job(conn, tenant, old) is None
        assert jobs.get_job(conn, tenant, busy) is not None
        assert jobs.get_job(conn, tenant, young) is not None
    world.succeed(busy, [0, 1])
    upkeep.end_finished(epoch)
    assert retention(world, Blobs()).run(epoch).partitions_dropped == 3


def test_ids_outside_of_every_month_are_kept_and_moved_when_their_month_comes(world: World) -> None:
    tenant = world.tenant()
    job = world.job(tenant, 3, job_id=old_id(OLD))
    world.succeed(job, [0])
    with world.database.begin() as conn:
        assert partitions.default_rows(conn) == {"documents": 3, "items": 3, "results": 1}
        assert partitions.default_rows(conn, limit=2)["items"] == 2
        partitions.create_month(conn, OLD)
        assert sum(partitions.default_rows(conn).values()) == 0
    assert world.states(job) == {"succeeded": 1, "pending": 2}
    assert world.rows("SELECT count(*) FROM items_202103")[0][0] == 3
    world.succeed(job, [1, 2])


def test_partitions_are_created_ahead(world: World, database_url: str) -> None:
    with psycopg.connect(world.database.url) as conn:
        conn.execute("DROP TABLE items_" + f"{partitions.month_start(datetime.now(UTC), 2):%Y%m}")
    with world.database.begin() as conn:
        assert partitions.create_ahead(conn) == (f"items_{partitions.month_start(datetime.now(UTC), 2):%Y%m}",)
        assert partitions.create_ahead(conn) == ()
        assert len(partitions.create_ahead(conn, months=3)) == 3


def test_unwanted_packs_and_orphans_are_collected_and_the_wanted_kept(world: World, epoch: Epoch) -> None:
    tenant, day = world.tenant(), 24 * 3600.0
    with world.database.begin() as conn:
        for key in ("packs/old", "packs/young"):
            pack = PackRef(key=key, sha256="s", size=1, tiles=1)
            packs.record(conn, tenant_id=tenant, packs=[packs.NewPack(pack=pack, media_hash="m")])
    world.age("packs", "used_at", 2 * day, "key = 'packs/old'")
    blobs = Blobs(old=2 * day, young=2 * day, orphan=2 * day, fresh=60.0)
    done = retention(world, blobs).run(epoch)
    assert (done.packs, done.orphans) == (1, 1)
    assert set(blobs.blobs) == {"packs/young", "packs/fresh"}


def test_uploads_that_no_row_names_are_collected_after_a_day(world: World, epoch: Epoch) -> None:
    day, key = 24 * 3600.0, "files/kept"
    new = NewFile(
        file_id=uuid.uuid4(),
        tenant_id=world.tenant(),
        filename="a.png",
        purpose="user_data",
        blob_key=key,
        size=1,
        sha256="0" * 64,
        media_type="image/png",
    )
    with world.database.begin() as conn:
        files.insert(conn, new)
    blobs = Blobs("files/", kept=2 * day, orphan=2 * day, fresh=60.0)
    assert retention(world, blobs).run(epoch).orphans == 1
    assert set(blobs.blobs) == {key, "files/fresh"}


def test_a_blob_store_that_is_away_postpones_and_loses_nothing(world: World, epoch: Epoch) -> None:
    with world.database.begin() as conn:
        pack = PackRef(key="packs/old", sha256="s", size=1, tiles=1)
        packs.record(conn, tenant_id=world.tenant(), packs=[packs.NewPack(pack=pack, media_hash="m")])
    world.age("packs", "used_at", 2 * 24 * 3600.0)
    blobs = Blobs(old=2 * 24 * 3600.0)
    blobs.away = True
    keeping = retention(world, blobs)
    assert keeping.run(epoch).packs == 0
    assert world.rows("SELECT count(*) FROM packs")[0][0] == 1
    blobs.away = False
    assert keeping.run(epoch).packs == 1
    assert blobs.blobs == {}


def test_retention_of_a_replaced_leader_stops(world: World, epoch: Epoch) -> None:
    world.age("leader", "lease_until", 61)
    with world.database.begin() as conn:
        leader.acquire(conn, "other", epoch.terms)
    with pytest.raises(LeaderLost):
        retention(world, Blobs()).run(epoch)


def test_old_exports_go_with_what_our_own_store_holds_of_them(world: World, epoch: Epoch) -> None:
    tenant, blobs = world.tenant(), Blobs()
    made = []
    for url in (None, "s3://theirs/x/", None):
        with world.database.begin() as conn:
            export = exports.insert(conn, tenant, world.job(tenant, 0), ExportOptions(url=url))
        assert export is not None
        made.append(export)
        folder = folder_of(tenant, export.job_id, export.export_id, own=True)
        blobs.blobs |= {f"{folder}{n:03}": 0.0 for n in range(450 if url is None else 1)}
    theirs, young = made[1:]
    world.rows(
        "UPDATE exports SET state = 'cancelled', finished_at = now() - interval '31 days' WHERE id <> %(id)s"
        " RETURNING 1",
        id=young.export_id,
    )
    blobs.away = True
    assert retention(world, blobs).run(epoch).exports == 0
    blobs.away = False
    retention(world, blobs).run(epoch)
    assert [row.id for row in world.rows("SELECT id FROM exports")] == [young.export_id]
    left = {key.split("/")[3] for key in blobs.blobs}
    assert left == {str(theirs.export_id), str(young.export_id)}  # of a tenant's own bucket nothing is touched
    world.rows("DELETE FROM job_progress WHERE job_id = %(j)s RETURNING 1", j=young.job_id)
    world.rows("DELETE FROM jobs WHERE id = %(j)s RETURNING 1", j=young.job_id)
    retention(world, blobs).run(epoch)
    assert world.rows("SELECT id FROM exports") == []
