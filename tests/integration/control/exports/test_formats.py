"""What an export holds, read back in every form, against what the api streams."""

from __future__ import annotations

import importlib
import io
import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from pipelines.blobs.local import LocalBlobStore
from pipelines.blobs.memory import MemoryBlobStore
from pipelines.jobs.exports import Compression, ExportFormat, FileContent
from pipelines.jobs.states import ExportState
from tests.integration.control.exports.work import asked, ended_job, folder, manifest, now, read, tools, turn, wanted
from tests.integration.store.world import World

BROKEN = (1, 4, 5, 12)


@pytest.mark.parametrize("codec", list(Compression))
def test_lines_are_those_of_the_results_stream(
    world: World, tenant: uuid.UUID, tmp_path: Path, codec: Compression
) -> None:
    export = asked(world, tenant, ended_job(world, tenant, 25, broken=BROKEN), compression=codec, shard_rows=7)
    store = MemoryBlobStore()
    assert turn(world, export, tools(store, tmp_path)).state is ExportState.SUCCEEDED
    assert read(store, export, "results") == wanted(world, export, succeeded=True)
    assert read(store, export, "errors") == wanted(world, export, succeeded=False)
    body = manifest(store, export)
    assert [shard["number"] for shard in body["shards"] if shard["content"] == "results"] == [0, 1, 2, 3]
    assert all(shard["rows"] <= 7 for shard in body["shards"])
    assert (body["rows"], body["errors"], body["job"]["counts"]) == (
        21,
        4,
        {"succeeded": 21, "failed": 4, "cancelled": 0},
    )
    assert list(tmp_path.iterdir()) == []  # nothing stays on the scratch disk


def test_parquet_holds_the_same_rows(world: World, tenant: uuid.UUID, tmp_path: Path) -> None:
    parquet: Any = importlib.import_module("pyarrow.parquet")

    export = asked(
        world, tenant, ended_job(world, tenant, 25, broken=BROKEN), format=ExportFormat.PARQUET, shard_rows=10
    )
    store = MemoryBlobStore()
    assert turn(world, export, tools(store, tmp_path)).state is ExportState.SUCCEEDED
    rows: list[dict[str, Any]] = []
    for shard in manifest(store, export)["shards"]:
        if shard["content"] == "results":
            assert shard["name"].endswith(".parquet")
            table = parquet.ParquetFile(io.BytesIO(store.get(folder(export) + shard["name"]))).read()
            rows += table.to_pylist()
    expected = wanted(world, export, succeeded=True)
    assert [row["seq"] for row in rows] == [line["seq"] for line in expected]
    for row, line in zip(rows, expected, strict=True):
        for name in ("job_id", "document", "name", "state", "attempt", "text", "flags", "finish_reason", "media_hash"):
            assert row[name] == line[name]
        for name in ("metadata", "output", "provenance"):
            assert json.loads(row[name]) == line[name]
        assert {name: row[name] for name in line["usage"]} == line["usage"]
        assert row["page"] is None
        assert row["created_at"].isoformat().replace("+00:00", "Z") == line["created_at"]
    assert read(store, export, "errors") == wanted(world, export, succeeded=False)


@pytest.mark.parametrize("content", list(FileContent))
def test_files_are_one_an_item_with_an_index(
    world: World, tenant: uuid.UUID, tmp_path: Path, content: FileContent
) -> None:
    job_id = ended_job(world, tenant, 16, broken=(3,))
    export = asked(world, tenant, job_id, format=ExportFormat.FILES, content=content, shard_rows=6)
    store = LocalBlobStore(tmp_path / "store")  # where a name that left its folder would be seen
    assert turn(world, export, tools(store, tmp_path / "scratch")).state is ExportState.SUCCEEDED
    expected = wanted(world, export, succeeded=True)
    index = read(store, export, "files")
    assert [entry["seq"] for entry in index] == [line["seq"] for line in expected]
    assert len({entry["name"] for entry in index}) == len(index)
    for entry, line in zip(index, expected, strict=True):
        assert entry["document"] == line["name"]
        data = store.get(folder(export) + entry["name"]).decode()
        match content:
            case FileContent.JSON:
                assert json.loads(data) == line
            case FileContent.TEXT:
                assert data == line["text"]
            case FileContent.MARKDOWN:
                assert data == f"{line['text']}\n"
    own = tmp_path / "store" / folder(export)
    outside = [path for path in (tmp_path / "store").rglob("*") if path.is_file() and not path.is_relative_to(own)]
    assert outside == []


def test_a_shard_ends_at_its_bytes(world: World, tenant: uuid.UUID, tmp_path: Path) -> None:
    export = asked(world, tenant, ended_job(world, tenant, 20), shard_bytes=2_000)
    store = MemoryBlobStore()
    turn(world, export, tools(store, tmp_path))
    shards = manifest(store, export)["shards"]
    assert len(shards) > 3
    assert sum(shard["rows"] for shard in shards) == 20
    line = max(len(json.dumps(line, ensure_ascii=False).encode()) for line in wanted(world, export, succeeded=True))
    assert all(shard["bytes"] < 2_000 + line + 1 for shard in shards)


def test_a_job_without_items_has_a_manifest_without_shards(world: World, tenant: uuid.UUID, tmp_path: Path) -> None:
    export = asked(world, tenant, ended_job(world, tenant, 0))
    store = MemoryBlobStore()
    assert turn(world, export, tools(store, tmp_path)).state is ExportState.SUCCEEDED
    body = manifest(store, export)
    assert (body["shards"], body["rows"], body["errors"]) == ([], 0, 0)


def test_a_job_that_failed_altogether_has_errors_alone(world: World, tenant: uuid.UUID, tmp_path: Path) -> None:
    export = asked(world, tenant, ended_job(world, tenant, 6, broken=range(6)))
    store = MemoryBlobStore()
    assert turn(world, export, tools(store, tmp_path)).state is ExportState.SUCCEEDED
    assert [shard["content"] for shard in manifest(store, export)["shards"]] == ["errors"]
    assert len(read(store, export, "errors")) == 6
    assert (now(world, export).rows, now(world, export).errors) == (0, 6)


def test_the_same_results_make_the_same_bytes(world: World, tenant: uuid.UUID, tmp_path: Path) -> None:
    job_id = ended_job(world, tenant, 12)
    for options in (
        {"compression": Compression.GZIP},
        {"compression": Compression.ZSTD},
        {"format": ExportFormat.PARQUET},
    ):
        names = []
        for _ in range(2):
            export = asked(world, tenant, job_id, **options)
            store = MemoryBlobStore()
            turn(world, export, tools(store, tmp_path))
            names.append([shard["name"] for shard in manifest(store, export)["shards"]])
        assert names[0] == names[1]
