"""The documents of one message: together where that saves work, apart where one is slow, bad or stopped."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.jobs.errors import BlobStoreUnavailable, CorruptMedia, MediaNotFound, StoreUnavailable
from pipelines.jobs.ids import uuid7
from pipelines.jobs.models import ClaimedItem, Document, JobPriority, JobSpec, MediaRef, PackRef
from pipelines.jobs.outcomes import Failed, Outcome, Prepared, Released, Retry
from pipelines.media.isolate import PageOutcome
from pipelines.media.options import Output, PrepareOptions
from pipelines.media.pack import Pack, TilePack
from pipelines.media.sniff import MediaType
from pipelines.steps.prepare import PrepareTools, PutPack, StoredPack
from pipelines.steps.prepare_batch import prepare

JOB, TENANT = uuid7(), uuid.uuid4()
SPEC = JobSpec(
    job_id=JOB,
    tenant_id=TENANT,
    kind="ocr",
    parameters={},
    source={"type": "none"},
    priority=JobPriority.NORMAL,
    deadline_at=None,
    allowed_buckets=None,
)


@dataclass(frozen=True, kw_only=True)
class File:
    path: Path
    sha256: str
    media_type: MediaType = MediaType.PNG
    version: str | None = "etag:1"


class World:
    """A fetcher, a decoder and a shelf that fail by name."""

    def __init__(self) -> None:
        self.slow = threading.Event()
        self.slow.set()
        self.open: set[str] = set()
        self.known: set[str] = set()
        self.finds: list[int] = []
        self.tiles: list[int] = []
        self.recorded: list[int] = []
        self.away = False

    @contextmanager
    def fetch(self, _spec: JobSpec, media: MediaRef) -> Iterator[File]:
        if "missing" in media.url:
            raise MediaNotFound("there is no such object")
        if "slow" in media.url:
            self.slow.wait(10)
        path = Path("/cache") / media.url.rpartition("/")[2]
        self.open.add(path.name)
        yield File(path=path, sha256=media.url)
        self.open.remove(path.name)

    def prepare_image(self, path: Path, options: PrepareOptions) -> Pack:
        assert path.name in self.open
        self.tiles.append(options.max_tiles)
        if "corrupt" in path.name:
            raise CorruptMedia("it does not decode")
        count = 2 if "unwritable" in path.name else 1
        return TilePack.of(np.full((count, 8, 8, 3), 7, np.uint8), (count,))

    def prepare_pages(self, path: Path, pages: Sequence[int], options: PrepareOptions) -> Iterator[PageOutcome]:
        for page in pages:
            if page == 9:
                raise RuntimeError("a defect")
            yield PageOutcome(page=page, pack=self.prepare_image(path, options))

    def prepare_video(self, path: Path, options: PrepareOptions) -> Pack:
        return self.prepare_image(path, options)

    def find(self, keys: Sequence[str]) -> Mapping[str, StoredPack]:
        self.finds.append(len(keys))
        return {}

    def put(self, key: str, data: bytes, *, tiles: int, media_hash: str) -> PutPack:
        if tiles == 2 or self.away:
            raise BlobStoreUnavailable("the blob store does not answer")
        ref = PackRef(key=key, sha256="s", size=len(data), tiles=tiles)
        return PutPack(stored=StoredPack(ref=ref, media_hash=media_hash))

    def record(self, _spec: JobSpec, packs: Sequence[PutPack]) -> None:
        if self.away:
            raise StoreUnavailable("the database did not answer")
        self.recorded.append(len(packs))


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def tools(world: World) -> Iterator[PrepareTools]:
    with ThreadPoolExecutor(4) as threads:
        yield PrepareTools(fetch=world.fetch, decoder=world, shelf=world, output=Output.TILES, threads=threads)


def item(seq: int, name: str, *, doc: int | None = None, page: int | None = None) -> ClaimedItem:
    media = (MediaRef(url=f"s3://b/{name}"),)
    document = Document(job_id=JOB, doc=seq if doc is None else doc, name=name, media=media)
    return ClaimedItem(job_id=JOB, seq=seq, attempt=1, losses=0, fails=0, page=page, document=document)


def all_of(results: Iterator[list[tuple[ClaimedItem, Outcome]]]) -> dict[int, Outcome]:
    found = [(entry.seq, outcome) for some in results for entry, outcome in some]
    assert len(found) == len(dict(found)), "one outcome each"
    return dict(found)


def test_a_message_costs_one_lookup_and_one_record_and_leaves_no_file_open(world: World, tools: PrepareTools) -> None:
    done = all_of(prepare([item(seq, f"{seq}.png") for seq in range(8)], SPEC, tools))
    assert {type(outcome) for outcome in done.values()} == {Prepared}
    assert len(done) == 8
    assert (world.finds, world.recorded, world.open) == ([8], [8], set())


def test_each_medium_of_an_item_is_cut_into_its_own_tiles(world: World, tools: PrepareTools) -> None:
    media = tuple(MediaRef(url=f"s3://b/{name}.png") for name in "abc")
    asked = Document(job_id=JOB, doc=0, name="chat", media=media)
    whole = ClaimedItem(job_id=JOB, seq=0, attempt=1, losses=0, fails=0, page=None, document=asked)
    content = [*({"type": "media", "index": index} for index in range(3)), {"type": "text", "text": "Alike?"}]
    parameters = {"messages": [{"role": "user", "content": content}], "max_tiles": 12, "media_tiles": [1, 12, 6]}
    keys = []
    for tiles in ([1, 12, 6], [12, 1, 6]):
        spec = replace(SPEC, kind="chat", parameters={**parameters, "media_tiles": tiles})
        done = all_of(prepare([whole], spec, tools))[0]
        assert isinstance(done, Prepared)
        keys.append(done.pack.key)
    assert world.tiles == [1, 12, 6, 12, 1, 6]
    assert keys[0] != keys[1]


def test_a_bad_document_harms_no_neighbour(tools: PrepareTools, world: World) -> None:
    names = ["a.png", "missing.png", "corrupt.png", "unwritable.png", "b.png"]
    done = all_of(prepare([item(seq, name) for seq, name in enumerate(names)], SPEC, tools))
    assert [type(done[seq]) for seq in range(5)] == [Prepared, Failed, Failed, Retry, Prepared]
    assert [done[seq].code for seq in (1, 2)] == ["media_not_found", "corrupt_media"]  # type: ignore[union-attr]
    assert world.open == set()


def test_what_is_fetched_does_not_wait_for_a_slow_neighbour(world: World, tools: PrepareTools) -> None:
    world.slow.clear()
    results = prepare([item(0, "slow.png"), item(1, "b.png")], SPEC, tools)
    arrived = threading.Event()
    handed: list[int] = []

    def listen() -> None:
        for some in results:
            handed.extend(entry.seq for entry, _ in some)
            arrived.set()

    listener = threading.Thread(target=listen)
    listener.start()
    assert arrived.wait(5), "handed out while the other is still being fetched"
    assert handed == [1]
    world.slow.set()
    listener.join(10)
    assert handed == [1, 0]


def test_a_stopped_item_is_left_out_at_the_next_step(world: World, tools: PrepareTools) -> None:
    stopped = {0}

    def asked(entry: ClaimedItem) -> Outcome | None:
        return Released(reason="lease_lost") if entry.seq in stopped else None

    pages = [item(seq, "d.pdf", doc=0, page=seq) for seq in range(3)]
    done = all_of(prepare([*pages, item(3, "other.png")], SPEC, tools, stopped=asked))
    assert [type(done[seq]) for seq in range(4)] == [Released, Prepared, Prepared, Prepared]
    stopped |= {0, 1, 2, 3}
    done = all_of(prepare([*pages, item(3, "other.png")], SPEC, tools, stopped=asked))
    assert {type(outcome) for outcome in done.values()} == {Released}
    assert world.open == set()


def test_a_defect_half_way_through_a_document_costs_only_what_was_left_of_it(tools: PrepareTools) -> None:
    pages = [item(seq, "d.pdf", doc=0, page=page) for seq, page in enumerate((0, 9, 1))]
    done = all_of(prepare([*pages, item(3, "other.png")], SPEC, tools))
    assert [isinstance(done[seq], Prepared) for seq in range(4)] == [True, False, False, True]


def test_a_database_that_is_away_costs_every_item_a_retry_and_raises_nothing(world: World, tools: PrepareTools) -> None:
    world.away = True
    done = all_of(prepare([item(seq, f"{seq}.png") for seq in range(3)], SPEC, tools))
    assert {type(outcome) for outcome in done.values()} == {Retry}
