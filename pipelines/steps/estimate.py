"""ESTIMATE: what a job would be, without making it. Nothing is stored, and no medium is opened.

The source is listed exactly as PLAN would list it (same code), within a bound of entries and of time; past it the
estimate says that it is not complete. What a listing cannot tell is worked out:

- How many pages a document has is unknown until it is opened: expected are as many items a document as lately.
- Tiles, tokens and time of an item: what results of this kind were charged lately, by the tenant's own jobs, else by
  everybody's (averages over at least a hundred results, which tell of nobody), else by what the parameters allow.
- `most` follows from the parameters alone: tiles a picture, frames a video, the longest answer to each question.

The api decodes nothing, so no header of an image is read, though it would sharpen the tiles.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection

from pipelines.jobs.errors import InvalidParameter
from pipelines.jobs.models import JobSpec, JsonObject
from pipelines.kinds import registry
from pipelines.kinds.base import Dialogue, MediaClass, MediumView, Preprocessing
from pipelines.kinds.registry import AnyKind
from pipelines.steps.plan import PlanTools, batches, class_of_name
from pipelines.store import averages, workers
from pipelines.store.averages import Averages
from pipelines.store.jobs import FailedAtPlan, NeedsPaging, PlannedDocument

MOST_ENTRIES = 20_000
MOST_SECONDS = 5.0
BATCH = 500
"""Entries between two looks at the clock."""

TOKENS_A_TILE = 256
_OWN, _ALL = 20, 100  # results that an average needs
_ALIVE = 60.0  # seconds since an engine was seen


@dataclass(frozen=True, kw_only=True)
class Most:
    """What one item can take at most."""

    tiles: int
    prompt_tokens: int
    completion_tokens: int

    def times(self, count: int) -> Most:
        """Of so many items."""
        return Most(
            tiles=self.tiles * count,
            prompt_tokens=self.prompt_tokens * count,
            completion_tokens=self.completion_tokens * count,
        )

    def plus(self, other: Most) -> Most:
        """Both together."""
        return Most(
            tiles=self.tiles + other.tiles,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
        )


NOTHING = Most(tiles=0, prompt_tokens=0, completion_tokens=0)


@dataclass(frozen=True, kw_only=True)
class Listed:
    """What the listing showed. `unusable` entries would fail; `skipped` names are of media this kind does not read.

    `bytes` adds up the sizes that are known, of `sized` documents. `most` counts a document with pages as one item.
    """

    documents: int
    to_page: int
    unusable: int
    skipped: int
    bytes: int
    sized: int
    most: Most
    complete: bool


@dataclass(frozen=True, kw_only=True)
class Expected:
    """Of one item. `of`: tenant, installation or limits; `engines` alive now. Time is None where nothing tells it."""

    of: Literal["tenant", "installation", "limits"]
    jobs: int
    results: int
    items_a_document: float
    tiles: float
    prompt_tokens: float
    completion_tokens: float
    device_seconds: float | None
    engines: int


def listed(
    spec: JobSpec,
    tools: PlanTools,
    *,
    entries: int = MOST_ENTRIES,
    seconds: float = MOST_SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> Listed:
    """List the source within the bounds (`tools.batch` entries at a time). Raises where PLAN would raise."""
    kind = registry.get(spec.kind)
    until = clock() + seconds
    seen: Counter[str] = Counter()
    shapes: Counter[MediaClass] = Counter()  # most documents have no parameters of their own
    most, size, taken, skipped, complete = NOTHING, 0, 0, 0, False
    for batch in batches(spec, None, tools):
        skipped = int(batch.cursor.get("skipped", 0))
        for document in batch.documents:
            seen["documents"] += 1
            size += sum(medium.size or 0 for medium in document.media)
            seen["sized"] += all(medium.size is not None for medium in document.media) and bool(document.media)
            if isinstance(document.items, FailedAtPlan):
                seen["unusable"] += 1
                continue
            seen["to_page"] += isinstance(document.items, NeedsPaging)
            if document.overrides or kind.many_media:
                most = most.plus(most_of(kind, {**spec.parameters, **document.overrides}, _views(kind, document)))
            else:
                shapes[_class(kind, document)] += 1
        taken += tools.batch
        complete = batch.done
        if not complete and (taken >= entries or clock() >= until):
            break
    for media_class, count in shapes.items():
        most = most.plus(most_of(kind, spec.parameters, (MediumView(media_class=media_class),)).times(count))
    return Listed(
        documents=seen["documents"],
        to_page=seen["to_page"],
        unusable=seen["unusable"],
        skipped=skipped,
        bytes=size,
        sized=seen["sized"],
        most=most,
        complete=complete,
    )


def expected(conn: Connection, spec: JobSpec, found: Listed) -> Expected:
    """What an item will take: as lately, or as the parameters allow."""
    engines = sum(worker.role == "gpu" and not worker.draining for worker in workers.list_workers(conn, within=_ALIVE))
    own = averages.averages(conn, spec.kind, tenant_id=spec.tenant_id, least=_OWN)
    if own is not None:
        return _as_lately(own, "tenant", engines)
    everybodys = averages.averages(conn, spec.kind, tenant_id=None, least=_ALL)
    if everybodys is not None:
        return _as_lately(everybodys, "installation", engines)
    usable = max(1, found.documents - found.unusable)
    return Expected(
        of="limits",
        jobs=0,
        results=0,
        items_a_document=1.0,
        tiles=found.most.tiles / usable,
        prompt_tokens=found.most.prompt_tokens / usable,
        completion_tokens=found.most.completion_tokens / usable,
        device_seconds=None,
        engines=engines,
    )


def most_of(kind: AnyKind, parameters: JsonObject, views: tuple[MediumView, ...]) -> Most:
    """What an item of these media can take at most: a token of text is at least a byte."""
    parsed = kind.parse_parameters(parameters)
    cut = kind.preprocessing(parsed)
    seen = tuple(MediumView(media_class=view.media_class, images=_images(view, cut)) for view in views)
    tiles = sum(_tiles(view, cut, index) for index, view in enumerate(seen))
    try:
        dialogue = kind.dialogue(parsed, seen)
    except InvalidParameter:  # an upload's name may tell nothing, and then not what the messages mark it as
        dialogue = Dialogue(questions=("",))
    words = sum(len(question.encode()) for question in dialogue.questions)
    words += sum(len(turn.encode()) for pair in dialogue.history for turn in pair) + len(
        (dialogue.system or "").encode()
    )
    questions = len(dialogue.questions)
    answer = parsed.generation.max_new_tokens
    earlier = answer * (questions * (questions - 1) // 2) if dialogue.conversation else 0
    return Most(
        tiles=tiles,
        prompt_tokens=tiles * TOKENS_A_TILE * max(1, questions) + words + earlier,
        completion_tokens=answer * questions,
    )


def whole(value: float) -> int:
    """Rounded up: an estimate does not promise too little."""
    return math.ceil(value - 1e-9)


def _as_lately(known: Averages, of: Literal["tenant", "installation"], engines: int) -> Expected:
    return Expected(
        of=of,
        jobs=known.jobs,
        results=known.results,
        items_a_document=known.items_a_document,
        tiles=known.tiles,
        prompt_tokens=known.prompt_tokens,
        completion_tokens=known.completion_tokens,
        device_seconds=known.device_seconds,
        engines=engines,
    )


def _views(kind: AnyKind, document: PlannedDocument) -> tuple[MediumView, ...]:
    if kind.many_media:
        names = (medium.url for medium in document.media)
        return tuple(MediumView(media_class=_named(kind, name)) for name in names)
    return (MediumView(media_class=_class(kind, document)),)


def _class(kind: AnyKind, document: PlannedDocument) -> MediaClass:
    if not document.media:
        return MediaClass.NONE
    url = document.media[0].url
    return _named(kind, document.name if url.startswith("upload:") else url)


def _named(kind: AnyKind, name: str) -> MediaClass:
    """What a name promises; where it tells nothing, the greatest that this kind reads."""
    found = class_of_name(name)
    if isinstance(found, MediaClass) and found in kind.media:
        return found
    return MediaClass.VIDEO if MediaClass.VIDEO in kind.media else MediaClass.IMAGE


def _images(view: MediumView, cut: Preprocessing) -> int:
    return cut.num_segments if view.media_class is MediaClass.VIDEO else 1


def _tiles(view: MediumView, cut: Preprocessing, index: int) -> int:
    """With the thumbnail that goes with several tiles."""
    most = cut.media_tiles[index] if index < len(cut.media_tiles) else cut.max_tiles
    match view.media_class:
        case MediaClass.NONE:
            return 0
        case MediaClass.VIDEO:
            return view.images * (cut.frame_tiles + (cut.frame_tiles > 1))
        case _:
            return most + (most > 1)
