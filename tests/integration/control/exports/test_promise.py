"""Whatever fails, and whenever: no manifest, or a whole export."""

from __future__ import annotations

import itertools
import uuid
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.blobs.memory import MemoryBlobStore
from pipelines.control import query
from pipelines.control.exports.run import run_turn
from pipelines.control.exports.shards import ShardTools, write_shards
from pipelines.control.query import ResultView
from pipelines.jobs.errors import BlobStoreUnavailable, ExportForbidden, MediaNotFound
from pipelines.jobs.exports import ExportFormat, ExportOptions
from pipelines.jobs.states import ExportState
from pipelines.store import export_leases, exports
from tests.integration.control.exports.work import (
    FaultyStore,
    Killed,
    asked,
    claimed,
    ended_job,
    folder,
    manifest,
    now,
    read,
    tools,
    turn,
    wanted,
)
from tests.integration.store.world import World

ROWS, SHARD = 23, 5
PUTS = 5 + 1 + 1  # five shards of results, one of errors, the manifest


def killed_at(nth: int) -> FaultyStore:
    """A store whose writer dies at the nth put (before it reaches the store)."""

    def fault(n: int, key: str) -> None:
        if n == nth:
            raise Killed

    return FaultyStore(fault)


def has_manifest(store: MemoryBlobStore) -> bool:
    return any(stat.key.endswith("manifest.json") for stat in store.list(""))


def lose_lease(world: World) -> None:
    """What waiting and a sweep do."""
    world.age("exports", "lease_until", 120, "state = 'running'")
    with world.database.begin() as conn:
        assert export_leases.expire(conn) == 1
    with world.database.begin() as conn:
        export_leases.pick(conn, limit=5, most=5)  # one that lost a lease is claimed only when it was picked


@pytest.mark.parametrize("nth", range(1, PUTS + 1))
@pytest.mark.parametrize("form", [ExportFormat.JSONL, ExportFormat.PARQUET])
def test_a_killed_exporter_is_resumed_and_repeats_one_shard_at_most(
    world: World, tenant: uuid.UUID, tmp_path: Path, nth: int, form: ExportFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = asked(world, tenant, ended_job(world, tenant, ROWS, broken=(1,)), shard_rows=SHARD, format=form)
    store = killed_at(nth)
    lease = claimed(world, export)
    with monkeypatch.context() as dead:
        dead.setattr("pipelines.control.exports.run.after_failure", _dies)
        with pytest.raises(Killed):
            run_turn(world.database, lease, tools(store, tmp_path), stopped=lambda: False)
    assert not has_manifest(store)
    before = now(world, export)
    assert before.state is ExportState.RUNNING
    lose_lease(world)
    store.keys.clear()
    assert turn(world, export, tools(store, tmp_path)).state is ExportState.SUCCEEDED
    body = manifest(store, export)
    assert len(store.keys) <= PUTS - before.shards  # what was committed is not written again
    assert store.keys[-1].endswith("manifest.json")
    assert (body["rows"], body["errors"]) == (ROWS - 1, 1)
    if form is ExportFormat.JSONL:
        assert read(store, export, "results") == wanted(world, export, succeeded=True)


def _dies(*_: object, **__: object) -> None:
    raise Killed


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    bad=st.sets(st.integers(1, 30), max_size=12),
    error=st.sampled_from([BlobStoreUnavailable, ConnectionError, MemoryError, ExportForbidden]),
    form=st.sampled_from(list(ExportFormat)),
    rows=st.integers(0, 12),
)
def test_whoever_sees_a_manifest_sees_everything(
    world: World,
    tenant: uuid.UUID,
    tmp_path: Path,
    bad: set[int],
    error: type[Exception],
    form: ExportFormat,
    rows: int,
) -> None:
    """Each put fails or not, by the dice; after each the store is looked at as a reader would."""
    job_id = ended_job(world, tenant, rows, broken=range(0, rows, 4))
    export = asked(world, tenant, job_id, shard_rows=3, format=form)

    def fault(n: int, key: str) -> None:
        assert not has_manifest(store), "something was put after the manifest"
        if n in bad:
            raise error("bad luck")

    store = FaultyStore(fault)
    for _ in range(40):
        state = turn(world, export, tools(store, tmp_path)).state
        assert has_manifest(store) == (state is ExportState.SUCCEEDED)
        if state.terminal:
            break
    assert state.terminal
    if state is ExportState.SUCCEEDED:
        body = manifest(store, export)
        assert body["rows"] + body["errors"] == rows
    else:
        assert bad


def test_two_exporters_of_one_export_make_one_whole_export(world: World, tenant: uuid.UUID, tmp_path: Path) -> None:
    """The first freezes after its put and before its commit; the second does everything; then the first goes on."""
    export = asked(world, tenant, ended_job(world, tenant, ROWS), shard_rows=SHARD)
    store = FaultyStore()
    frozen = claimed(world, export, worker="frozen")
    views = ShardTools(
        read=lambda after, limit: _results(world, export, after, limit),
        put=lambda name, data: store.put(folder(export) + name, data),
        scratch=tmp_path,
        gpu_second_cost=0.0,
        stopped=lambda: False,
    )
    late = write_shards(export.options, frozen.cursor, views)
    first = next(late)
    lose_lease(world)
    assert turn(world, export, tools(store, tmp_path)).state is ExportState.SUCCEEDED
    body = manifest(store, export)
    with world.database.begin() as conn:
        assert export_leases.advance(conn, frozen, shards=first.shards, cursor=first.cursor) is None
        assert not export_leases.finish(conn, frozen)
        assert not export_leases.fail(conn, frozen, code="x", message="y")
        assert not export_leases.release(conn, frozen)
    list(late)  # the zombie writes on, all the way
    assert manifest(store, export) == body
    assert {key.rsplit("/")[-1] for key in store.keys} == {*(s["name"] for s in body["shards"]), "manifest.json"}
    assert read(store, export, "results") == wanted(world, export, succeeded=True)


def _results(world: World, export: exports.Export, after: int, limit: int) -> tuple[ResultView, ...]:
    with world.database.begin() as conn:
        return query.read_results(conn, export.tenant_id, export.job_id, states=query.ENDED, after=after, limit=limit)


def test_a_turn_ends_after_its_time_and_the_next_goes_on(world: World, tenant: uuid.UUID, tmp_path: Path) -> None:
    export = asked(world, tenant, ended_job(world, tenant, ROWS), shard_rows=SHARD)
    store = FaultyStore()
    hours = itertools.count(step=3600)
    short = tools(store, tmp_path, clock=lambda: float(next(hours)))
    seen = []
    while (export := turn(world, export, short)).state is ExportState.PENDING:
        seen.append((export.shards, export.rows))
    assert export.state is ExportState.SUCCEEDED
    assert seen == [(1, 5), (2, 10), (3, 15), (4, 20)]
    assert read(store, export, "results") == wanted(world, export, succeeded=True)


def test_a_stopped_worker_gives_its_export_back_uncounted(world: World, tenant: uuid.UUID, tmp_path: Path) -> None:
    export = asked(world, tenant, ended_job(world, tenant, ROWS), shard_rows=SHARD)
    asks = itertools.count()
    run_turn(
        world.database,
        claimed(world, export),
        tools(FaultyStore(), tmp_path),
        stopped=lambda: next(asks) > 5,
    )
    (row,) = world.rows("SELECT state, fails, losses, shards FROM exports")
    assert (row.state, row.fails, row.losses) == ("pending", 0, 0)
    assert 0 < row.shards < 5


def test_a_cancelled_export_stops_and_has_no_manifest(world: World, tenant: uuid.UUID, tmp_path: Path) -> None:
    export = asked(world, tenant, ended_job(world, tenant, ROWS), shard_rows=SHARD)

    def fault(n: int, key: str) -> None:
        if n == 3:
            with world.database.begin() as conn:
                assert exports.cancel(conn, tenant, export.job_id, export.export_id)

    store = FaultyStore(fault)
    assert turn(world, export, tools(store, tmp_path)).state is ExportState.CANCELLED
    assert store.puts == 3
    assert not has_manifest(store)


def test_a_store_that_is_away_is_tried_again_then_given_up(world: World, tenant: uuid.UUID, tmp_path: Path) -> None:
    def fault(n: int, key: str) -> None:
        raise BlobStoreUnavailable("away")

    export = asked(world, tenant, ended_job(world, tenant, 3))
    away = tools(FaultyStore(fault), tmp_path)
    states = [turn(world, export, away).state for _ in range(6)]
    assert states == [ExportState.PENDING] * 5 + [ExportState.FAILED]
    assert now(world, export).error_code == "blob_store_unavailable"


def test_a_right_that_was_taken_away_ends_the_export(world: World, tenant: uuid.UUID, tmp_path: Path) -> None:
    export = asked(world, tenant, ended_job(world, tenant, 3), url="s3://out/2026/")
    world.rows("UPDATE tenants SET export_buckets = '{elsewhere}' RETURNING 1")
    store = FaultyStore()
    assert turn(world, export, tools(store, tmp_path)).state is ExportState.FAILED
    assert now(world, export).error_code == ExportForbidden.code
    assert store.puts == 0


def test_an_export_whose_results_are_gone_fails_instead_of_lying(
    world: World, tenant: uuid.UUID, tmp_path: Path
) -> None:
    export = asked(world, tenant, ended_job(world, tenant, 5))
    world.rows("DELETE FROM items WHERE seq = 3 RETURNING 1")
    store = FaultyStore()
    for _ in range(6):
        state = turn(world, export, tools(store, tmp_path)).state
        if state.terminal:
            break
    assert state is ExportState.FAILED
    assert not has_manifest(store)


def test_missing_pyarrow_is_said_clearly(
    world: World, tenant: uuid.UUID, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    export = asked(world, tenant, ended_job(world, tenant, 2), format=ExportFormat.PARQUET)
    assert turn(world, export, tools(MemoryBlobStore(), tmp_path)).state is ExportState.FAILED
    found = now(world, export)
    assert found.error_code == "configuration_error"
    assert "pip install batchsight[parquet]" in (found.error_message or "")


def test_options_survive_the_database(world: World, tenant: uuid.UUID) -> None:
    options = ExportOptions(url="s3://out/x/", format=ExportFormat.PARQUET, shard_rows=7)
    with world.database.begin() as conn:
        made = exports.insert(conn, tenant, world.job(tenant, 0), options)
    assert made is not None
    assert now(world, made).options == options


def test_a_permanent_failure_of_the_target_is_not_tried_again(world: World, tenant: uuid.UUID, tmp_path: Path) -> None:
    def fault(n: int, key: str) -> None:
        raise MediaNotFound("no such bucket")

    export = asked(world, tenant, ended_job(world, tenant, 3))
    assert turn(world, export, tools(FaultyStore(fault), tmp_path)).state is ExportState.FAILED
