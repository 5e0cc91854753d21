from __future__ import annotations

import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.blobs.base import ObjectStat
from pipelines.jobs.errors import MediaNotFound, RequestTooLarge, SourceForbidden
from pipelines.jobs.models import JobPriority, JobSpec
from pipelines.kinds import registry
from pipelines.kinds.base import MediaClass
from pipelines.steps.access import AccessRules, UploadAddress
from pipelines.steps.plan import PlanTools, batches, class_of_name
from pipelines.store.jobs import FailedAtPlan, NeedsPaging, PlannedDocument, Single

FILE = uuid.UUID(int=5)


@dataclass
class Listing:
    """A bucket that makes its keys while it is listed, in byte order, as S3 does; it never holds them."""

    count: int
    suffix: str = ".png"

    def head(self, bucket: str, key: str) -> ObjectStat:
        raise MediaNotFound(f"nobody asks for {bucket}/{key} while planning")

    def read(
        self, bucket: str, key: str, *, version_id: str | None = None, if_match: str | None = None
    ) -> Iterator[bytes]:
        raise MediaNotFound(f"nobody reads {bucket}/{key} while planning")

    def list(self, bucket: str, prefix: str, *, start_after: str = "") -> Iterator[ObjectStat]:
        first = int(start_after.rpartition("/")[2].partition(".")[0]) + 1 if start_after else 0
        for number in range(first, self.count):
            yield ObjectStat(key=f"{prefix}{number:08d}{self.suffix}", size=10, etag=f"e{number}")


@dataclass(frozen=True)
class Upload:
    blob_key: str = "uploads/x"
    filename: str = "report.pdf"
    size: int = 3
    sha256: str = "abc"


def find_upload(_spec: JobSpec, address: UploadAddress) -> Upload | None:
    return Upload() if address.file_id == FILE else None


@contextmanager
def open_manifest(_spec: JobSpec, source: Mapping[str, Any]) -> Iterator[Iterable[bytes]]:
    yield [source["inline"].encode()]


def tools(objects: Any = None, **more: Any) -> PlanTools:
    rules = AccessRules(buckets=("mine",), https=False)
    return PlanTools(
        objects=objects or Listing(0),
        open_manifest=open_manifest,
        find_upload=find_upload,
        rules=lambda _: rules,
        **more,
    )


def spec(source: dict[str, Any], kind: str = "ocr", **parameters: Any) -> JobSpec:
    return JobSpec(
        job_id=uuid.UUID(int=1),
        tenant_id=uuid.UUID(int=2),
        kind=kind,
        parameters=registry.get(kind).validate(parameters),
        source=source,
        priority=JobPriority.NORMAL,
    )


def plan(job: JobSpec, using: PlanTools, cursor: Mapping[str, Any] | None = None) -> list[PlannedDocument]:
    return [document for batch in batches(job, cursor, using) for document in batch.documents]


def test_a_million_keys_are_planned_in_flat_memory() -> None:
    job = spec({"type": "prefix", "url": "s3://mine/in/"})
    count, most = 0, 0
    before = sys.getallocatedblocks()
    for batch in batches(job, None, tools(Listing(1_000_000))):
        count += len(batch.documents)
        most = max(most, sys.getallocatedblocks() - before)
    assert count == 1_000_000
    assert most < 300_000, "a batch of documents is held, not a million"


@given(keys=st.integers(0, 40), size=st.integers(1, 7), stop=st.integers(0, 50))
def test_a_plan_that_is_resumed_anywhere_plans_the_same_documents(keys: int, size: int, stop: int) -> None:
    job = spec({"type": "prefix", "url": "s3://mine/in/"})
    using = tools(Listing(keys), batch=size)
    whole = plan(job, using)
    resumed: list[PlannedDocument] = []
    cursor: Mapping[str, Any] | None = None
    for number, batch in enumerate(batches(job, cursor, using)):
        resumed += batch.documents
        cursor = batch.cursor
        if batch.done:
            break
        if number == stop:
            resumed += plan(job, using, cursor)
            break
    assert resumed == whole
    assert [document.name for document in whole] == [f"in/{number:08d}.png" for number in range(keys)]


@given(lines=st.lists(st.booleans(), max_size=20), size=st.integers(1, 5), stop=st.integers(0, 5))
def test_a_manifest_is_resumed_at_its_line(lines: Sequence[bool], size: int, stop: int) -> None:
    text = "\n".join('{"url": "s3://mine/a.png"}' if good else "{" for good in lines)
    job = spec({"type": "manifest", "format": "jsonl", "inline": text})
    using = tools(batch=size)
    whole = plan(job, using)
    assert len(whole) == len(lines)
    assert [isinstance(document.items, FailedAtPlan) for document in whole] == [not good for good in lines]
    found = list(batches(job, None, using))
    cut = min(stop, len(found) - 1)
    head = [document for batch in found[: cut + 1] for document in batch.documents]
    rest = [] if found[cut].done else plan(job, using, found[cut].cursor)
    assert head + rest == whole


def test_listed_objects_are_pinned_and_others_are_not() -> None:
    (listed,) = plan(spec({"type": "prefix", "url": "s3://mine/in/"}), tools(Listing(1)))
    assert listed.media[0].version == "etag:e0"
    (named,) = plan(spec({"type": "media", "media": [{"url": "s3://mine/a.png"}]}), tools())
    assert named.media[0].version is None
    (uploaded,) = plan(spec({"type": "files", "file_ids": [str(FILE)]}), tools())
    assert (uploaded.name, uploaded.media[0].version) == ("report.pdf", "sha256:abc")


@pytest.mark.parametrize(
    ("suffix", "kind", "expected"),
    [
        (".png", "ocr", Single()),
        (".PDF", "ocr", NeedsPaging()),
        (".tif", "ocr", NeedsPaging()),
        ("", "ocr", NeedsPaging()),
        (".mp4", "caption", Single()),
        (".mp4", "video_qa", Single()),
    ],
)
def test_a_name_decides_whether_pages_must_be_counted(suffix: str, kind: str, expected: object) -> None:
    parameters = {"questions": ["what?"]} if kind == "video_qa" else {}
    job = spec({"type": "prefix", "url": "s3://mine/in/"}, kind, **parameters)
    (document,) = plan(job, tools(Listing(1, suffix)))
    assert document.items == expected


@pytest.mark.parametrize("suffix", [".mp4", ".txt", ".json", "/"])
def test_a_prefix_skips_what_the_kind_does_not_read_and_counts_it(suffix: str) -> None:
    job = spec({"type": "prefix", "url": "s3://mine/in/"})
    (batch,) = batches(job, None, tools(Listing(3, suffix)))
    assert batch.documents == ()
    assert batch.cursor["skipped"] == 3


def test_an_entry_of_the_wrong_sort_fails_alone_when_it_was_named() -> None:
    media = [{"url": "s3://mine/clip.mp4"}, {"url": "s3://mine/a.png"}]
    bad, good = plan(spec({"type": "media", "media": media}), tools())
    assert isinstance(bad.items, FailedAtPlan)
    assert bad.items.code == "unsupported_media"
    assert good.items == Single()


def test_a_bucket_that_is_not_allowed_fails_the_plan() -> None:
    with pytest.raises(SourceForbidden, match="yours"):
        plan(spec({"type": "prefix", "url": "s3://yours/in/"}), tools(Listing(1)))


def test_a_source_with_too_many_entries_is_refused_before_they_are_all_inserted() -> None:
    inserted = 0
    job = spec({"type": "prefix", "url": "s3://mine/in/"})
    found = batches(job, None, tools(Listing(100), batch=10, max_items=25))
    inserted += len(next(found).documents) + len(next(found).documents)
    with pytest.raises(RequestTooLarge, match="more than 25"):
        next(found)
    assert inserted == 20


def test_a_chat_without_media_is_one_item() -> None:
    (document,) = plan(spec({"type": "none"}, "chat", messages=[{"role": "user", "content": "hi"}]), tools())
    assert document.media == ()
    assert document.items == Single()


def test_all_media_of_a_chat_are_one_item() -> None:
    media = [{"url": "s3://mine/a.png"}, {"url": "s3://mine/b.mp4"}]
    job = spec({"type": "media", "media": media}, "chat", messages=[{"role": "user", "content": "hi"}])
    (document,) = plan(job, tools())
    assert [ref.url for ref in document.media] == ["s3://mine/a.png", "s3://mine/b.mp4"]


@given(parts=st.lists(st.text(alphabet=".aPpNnGg", min_size=1, max_size=7), min_size=1, max_size=3))
def test_a_name_promises_what_its_ending_says(parts: list[str]) -> None:
    name = "/".join(part for part in parts if part.strip(".")) or "a"
    ending = PurePosixPath(name).suffix.lower()
    assert (class_of_name(name) is MediaClass.IMAGE) == (ending == ".png")


@pytest.mark.parametrize(
    ("name", "promised"),
    [
        ("a/b.PDF", MediaClass.DOCUMENT),
        ("clip.tar.mp4", MediaClass.VIDEO),
        ("https://host/x.jpg?size=1.mp4", MediaClass.IMAGE),
        ("notes.txt", "other"),
        ("a.png/scan", None),
        (".png", None),
        ("scan.", None),
    ],
)
def test_names_and_what_they_promise(name: str, promised: MediaClass | str | None) -> None:
    assert class_of_name(name) == promised
