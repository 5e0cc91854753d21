"""Jobs that have ended, exports of them, and stores that fail on command."""

from __future__ import annotations

import gzip
import hashlib
import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import zstandard

from pipelines.blobs.base import BlobStat, BlobStore, Data
from pipelines.blobs.memory import MemoryBlobStore
from pipelines.control import query
from pipelines.control.exports.run import ExportTools, run_turn
from pipelines.control.exports.target import ExportRules, folder_of
from pipelines.control.lines import line_of
from pipelines.jobs.errors import BlobStoreUnavailable
from pipelines.jobs.exports import ExportOptions
from pipelines.jobs.models import MediaRef
from pipelines.jobs.outcomes import Failed, Succeeded
from pipelines.store import export_leases, exports, progress
from pipelines.store.export_leases import ExportLease
from pipelines.store.exports import Export
from pipelines.store.jobs import FailedAtPlan, PlannedDocument
from pipelines.store.session import Database
from tests.integration.store.world import World, prepared, result

NAMES = ("../../up.pdf", "same.png", "same.png", "ü 漢字.png", "a/b/c.tif", "\u202egnp.exe", "x" * 300)


class Killed(BaseException):
    """Stands for kill -9: nothing that is written for errors sees it."""


class FaultyStore(MemoryBlobStore):
    """Runs `fault(n, key)` before its nth put; what that raises happens instead."""

    def __init__(self, fault: Callable[[int, str], None] = lambda n, key: None) -> None:
        super().__init__()
        self.fault = fault
        self.puts = 0
        self.keys: list[str] = []

    def put(self, key: str, data: Data, *, if_absent: bool = False) -> BlobStat:
        self.puts += 1
        self.fault(self.puts, key)
        self.keys.append(key)
        return super().put(key, data, if_absent=if_absent)


def ended_job(world: World, tenant: uuid.UUID, count: int, *, broken: Sequence[int] = ()) -> uuid.UUID:
    """A job with a result for each item but the broken ones: half of those failed at the plan, half at work."""
    planned = [
        PlannedDocument(
            name=NAMES[n % len(NAMES)],
            media=(MediaRef(url=f"s3://bucket/{n}"),),
            metadata={"n": n},
            items=FailedAtPlan(code="corrupt_media", message="not a picture"),
        )
        if n in broken and n % 2
        else PlannedDocument(name=NAMES[n % len(NAMES)], media=(MediaRef(url=f"s3://bucket/{n}"),), metadata={"n": n})
        for n in range(count)
    ]
    job_id = world.job(tenant, count, planned=planned)
    seqs = [n for n in range(count) if not (n in broken and n % 2)]
    world.complete(*((item, prepared()) for item in world.claim(job_id, seqs)))
    world.complete(
        *(
            (item, Failed(code="engine_error", message="no"))
            if item.seq in broken
            else (item, Succeeded(result=result(f"text {item.seq} – ✓\n", output={"n": item.seq, "none": None})))
            for item in world.claim_ready(job_id, seqs)
        )
    )
    end(world.database, job_id)
    return job_id


def end(database: Database, job_id: uuid.UUID) -> None:
    """What the leader does."""
    with database.begin() as conn:
        progress.fold(conn)
    with database.begin() as conn:
        assert progress.finalise(conn, job_id) is not None


def asked(world: World, tenant: uuid.UUID, job_id: uuid.UUID, **options: Any) -> Export:
    """An export that was asked for."""
    with world.database.begin() as conn:
        made = exports.insert(conn, tenant, job_id, ExportOptions(**options))
    assert made is not None
    return made


def tools(store: BlobStore, scratch: Path, **changes: Any) -> ExportTools:
    """Into one store, whatever the address."""
    fields: dict[str, Any] = {
        "own": store,
        "open_bucket": lambda target: store,
        "rules": ExportRules(buckets=("out",), blob_url="s3://batchsight"),
        "scratch": scratch,
        "uniform": lambda low, high: 0.0,
    }
    return ExportTools(**{**fields, **changes})


def claimed(world: World, export: Export, *, worker: str = "w") -> ExportLease:
    """The export under a lease."""
    with world.database.begin() as conn:
        lease = export_leases.claim(conn, export.export_id, worker=worker, lease=60)
    assert lease is not None
    return lease


def turn(world: World, export: Export, tools: ExportTools) -> Export:
    """One whole turn of one worker; the export afterwards."""
    run_turn(world.database, claimed(world, export), tools, stopped=lambda: False)
    return now(world, export)


def now(world: World, export: Export) -> Export:
    """The export as it is."""
    with world.database.begin() as conn:
        found = exports.get(conn, export.tenant_id, export.job_id, export.export_id)
    assert found is not None
    return found


def folder(export: Export) -> str:
    """Where it lies in the store."""
    own = export.options.url is None
    return folder_of(export.tenant_id, export.job_id, export.export_id, own=own)


def manifest(store: BlobStore, export: Export) -> dict[str, Any]:
    """The manifest, after everything that it names was found whole."""
    body: dict[str, Any] = json.loads(store.get(folder(export) + "manifest.json"))
    for shard in body["shards"]:
        data = store.get(folder(export) + shard["name"])
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard["bytes"], shard["sha256"])
        if shard["content"] == "files":
            for entry in lines(data, shard["name"]):
                file = store.get(folder(export) + entry["name"])
                assert (len(file), hashlib.sha256(file).hexdigest()) == (entry["bytes"], entry["sha256"])
    return body


def read(store: BlobStore, export: Export, content: str) -> list[dict[str, Any]]:
    """The lines of all shards of this content, in order."""
    return [
        line
        for shard in manifest(store, export)["shards"]
        if shard["content"] == content
        for line in lines(store.get(folder(export) + shard["name"]), shard["name"])
    ]


def lines(data: bytes, name: str) -> Iterator[dict[str, Any]]:
    """JSON Lines, unpacked by their ending."""
    if name.endswith(".gz"):
        data = gzip.decompress(data)
    elif name.endswith(".zst"):
        data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return (json.loads(line) for line in data.splitlines())


def wanted(world: World, export: Export, *, succeeded: bool) -> list[dict[str, Any]]:
    """What GET /results says of the job."""
    states = query.SUCCEEDED if succeeded else tuple(set(query.ENDED) - set(query.SUCCEEDED))
    with world.database.begin() as conn:
        views = query.read_results(conn, export.tenant_id, export.job_id, states=states, limit=100_000)
    return [json.loads(json.dumps(line_of(view, gpu_second_cost=0.0))) for view in views]


__all__ = ["BlobStoreUnavailable", "FaultyStore", "Killed"]
