"""Rows about blobs: packs that are reused while others are collected, files that share their bytes."""

from __future__ import annotations

import threading
import uuid

import pytest

from pipelines.jobs.errors import QuotaExceeded
from pipelines.jobs.ids import uuid7
from pipelines.jobs.models import PackRef
from pipelines.store import files, packs
from pipelines.store.files import NewFile, StoredFile
from tests.integration.store.world import World, prepared

DAY = 24 * 3600.0


@pytest.fixture
def tenant(world: World) -> uuid.UUID:
    return world.tenant()


def record(world: World, tenant: uuid.UUID, *keys: str, age: float = 2 * DAY) -> None:
    with world.database.begin() as conn:
        new = [packs.NewPack(pack=PackRef(key=key, sha256="s", size=5, tiles=2), media_hash="m") for key in keys]
        packs.record(conn, tenant_id=tenant, packs=new)
    world.age("packs", "used_at", age)


def collect(world: World) -> set[str]:
    with world.database.begin() as conn:
        return set(packs.collect(conn))


def test_a_pack_is_found_and_its_age_begins_anew(world: World, tenant: uuid.UUID) -> None:
    record(world, tenant, "packs/a", "packs/b")
    with world.database.begin() as conn:
        found = packs.lookup_and_touch(conn, ["packs/none", "packs/a"])
        assert found == (packs.PackRow(key="packs/a", sha256="s", size=5, tiles=2, media_hash="m"),)
    assert collect(world) == {"packs/b"}


def test_packs_that_an_unfinished_item_needs_are_kept(world: World, tenant: uuid.UUID) -> None:
    job = world.job(tenant, 4)
    claimed = world.claim(job, range(4))
    world.complete(*((item, prepared(f"packs/{item.seq}")) for item in claimed))
    world.rows("UPDATE items SET enqueued_at = now() WHERE seq = 1 RETURNING 1")
    world.claim_ready(job, [2])
    world.succeed(job, [3], ready=True)
    record(world, tenant, *(f"packs/{n}" for n in range(5)))
    assert collect(world) == {"packs/3", "packs/4"}


def test_young_packs_are_never_collected(world: World, tenant: uuid.UUID) -> None:
    record(world, tenant, "packs/a", age=0.9 * DAY)
    assert collect(world) == set()
    with pytest.raises(ValueError, match="within"), world.database.begin() as conn:
        packs.collect(conn, older_than=60)


def test_reuse_and_collection_of_one_pack_exclude_each_other(world: World, tenant: uuid.UUID) -> None:
    record(world, tenant, "packs/a")
    found: list[tuple[packs.PackRow, ...]] = []

    def reuse() -> None:
        with world.database.begin() as conn:
            found.append(packs.lookup_and_touch(conn, ["packs/a"]))

    with world.database.begin() as conn:
        assert packs.collect(conn) == ("packs/a",)
        thread = threading.Thread(target=reuse)
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()  # it waits: the blob may be gone, the row not yet
    thread.join()
    assert found == [()]
    record(world, tenant, "packs/a")
    with world.database.begin() as conn:
        packs.lookup_and_touch(conn, ["packs/a"])
        assert collect(world) == set()


def test_a_collection_that_fails_keeps_its_rows(world: World, tenant: uuid.UUID) -> None:
    record(world, tenant, "packs/a")
    with world.database.begin() as conn:
        assert packs.collect(conn) == ("packs/a",)
        conn.rollback()
    with world.database.begin() as conn:
        assert packs.unknown(conn, ["packs/a", "packs/b"]) == ("packs/b",)


def insert(world: World, tenant: uuid.UUID, **fields: object) -> StoredFile:
    values: dict[str, object] = {
        "file_id": uuid7(),
        "tenant_id": tenant,
        "filename": "a.pdf",
        "purpose": "vision",
        "blob_key": "files/x",
        "size": 10,
        "sha256": "s",
        "media_type": "application/pdf",
    }
    with world.database.begin() as conn:
        return files.insert(conn, NewFile(**{**values, **fields}))  # type: ignore[arg-type]


def stored_bytes(world: World) -> int:
    return int(world.rows("SELECT sum(stored_bytes) FROM tenants")[0][0])


def test_files_are_listed_both_ways_and_by_purpose(world: World, tenant: uuid.UUID) -> None:
    made = [insert(world, tenant, purpose="batch" if n == 1 else "vision").file_id for n in range(3)]
    insert(world, world.tenant())
    with world.database.begin() as conn:

        def listed(**filters: object) -> list[uuid.UUID]:
            return [f.file_id for f in files.list_files(conn, tenant, **{"limit": 9, **filters})]  # type: ignore[arg-type]

        assert listed() == made[::-1]
        assert listed(descending=False) == made
        assert listed(after=made[2], limit=1) == [made[1]]
        assert listed(after=made[0], descending=False) == made[1:]
        assert listed(purpose="batch") == [made[1]]
        assert files.existing(conn, tenant, [*made, uuid7()]) == set(made)
        assert files.existing(conn, world.tenant(), made) == frozenset()
        assert files.get(conn, world.tenant(), made[0]) is None


def test_a_full_store_is_refused_and_freed_by_deleting(world: World) -> None:
    tenant = world.tenant(max_stored_bytes=25)
    first = insert(world, tenant)
    insert(world, tenant)
    with pytest.raises(QuotaExceeded):
        insert(world, tenant)
    with world.database.begin() as conn:
        assert files.delete(conn, tenant, first.file_id) == first
        assert files.delete(conn, tenant, first.file_id) is None
    insert(world, tenant)
    assert stored_bytes(world) == 20


def test_a_shared_blob_goes_with_its_last_row(world: World, tenant: uuid.UUID) -> None:
    one, other = insert(world, tenant), insert(world, tenant)
    for file, unused in ((one, ()), (other, ("files/x",))):
        with world.database.begin() as conn:
            deleted = files.delete(conn, tenant, file.file_id)
            assert deleted is not None
            assert files.unused(conn, [deleted.blob_key]) == unused


def test_content_found_for_sharing_is_not_deleted_meanwhile(world: World, tenant: uuid.UUID) -> None:
    one = insert(world, tenant)
    gone: list[tuple[str, ...]] = []

    def delete() -> None:
        with world.database.begin() as conn:
            files.delete(conn, tenant, one.file_id)
            gone.append(files.unused(conn, [one.blob_key]))

    with world.database.begin() as conn:
        found = files.find_content(conn, tenant, "s")
        assert found is not None
        assert files.find_content(conn, tenant, "other") is None
        thread = threading.Thread(target=delete)
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        new = NewFile(
            file_id=uuid7(),
            tenant_id=tenant,
            filename="b",
            purpose="vision",
            blob_key=found.blob_key,
            size=10,
            sha256="s",
            media_type="x/y",
        )
        files.insert(conn, new)
    thread.join()
    assert gone == [()]


def test_a_presigned_upload_arrives_once_with_what_it_really_is(world: World, tenant: uuid.UUID) -> None:
    pending = insert(world, tenant, status="pending", size=100, sha256="")
    with world.database.begin() as conn:
        assert files.existing(conn, tenant, [pending.file_id]) == frozenset()
        arrived = files.complete(conn, tenant, pending.file_id, size=40, sha256="real", media_type="image/png")
        assert arrived is not None
        assert (arrived.status, arrived.size, arrived.sha256, arrived.blob_key) == ("uploaded", 40, "real", "files/x")
        again = files.complete(conn, tenant, pending.file_id, size=40, sha256="real", media_type="image/png")
        assert again is None
        assert files.mark(conn, tenant, pending.file_id, status="processed")
        assert not files.mark(conn, tenant, uuid7(), status="processed")
    assert stored_bytes(world) == 40


def test_files_expire(world: World, tenant: uuid.UUID) -> None:
    kept, gone = insert(world, tenant, blob_key="kept"), insert(world, tenant, blob_key="gone")
    world.rows("UPDATE files SET expires_at = now() WHERE id = %(f)s RETURNING 1", f=gone.file_id)
    with world.database.begin() as conn:
        assert files.get(conn, tenant, gone.file_id) is None
        assert [file.file_id for file in files.expire(conn)] == [gone.file_id]
        assert files.unused(conn, ["kept", "gone", "gone"]) == ("gone",)
        assert files.get(conn, tenant, kept.file_id) is not None
    assert stored_bytes(world) == 10
