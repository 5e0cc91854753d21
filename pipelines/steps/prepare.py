"""PREPARE: source files become packs: fetch once, decode in the isolated child, cut tiles or sample frames, store.

The items of one call are consecutive pages of one document, so their file is fetched once and opened once. A page that
fails fails alone. A pack is named by its content and parameters: what another job of the tenant has prepared is reused.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import structlog

from pipelines.jobs.errors import UnsupportedMedia
from pipelines.jobs.models import ClaimedItem, JobSpec, MediaRef, PackRef
from pipelines.jobs.outcomes import Outcome, Prepared
from pipelines.jobs.retry import after_failure
from pipelines.kinds import registry
from pipelines.kinds.base import MediaClass, MediumView, Preprocessing
from pipelines.kinds.registry import AnyKind
from pipelines.media import pack as packs
from pipelines.media.images import TILE
from pipelines.media.isolate import PageOutcome
from pipelines.media.options import Output, PrepareOptions
from pipelines.media.pack import EncodedPack, Pack, TilePack
from pipelines.media.sniff import MediaType

_log = structlog.get_logger(__name__)

Result = tuple[ClaimedItem, Outcome]


class SourceFile(Protocol):
    """A fetched source: it stays on disk while its context is open."""

    @property
    def path(self) -> Path:
        """Where it lies."""

    @property
    def sha256(self) -> str:
        """Of its bytes (hex)."""

    @property
    def media_type(self) -> MediaType:
        """From its first bytes."""

    @property
    def version(self) -> str | None:
        """The object version or ETag that was read."""


class Decode(Protocol):
    """The decoder pool (`pipelines.media.isolate.Decoder`)."""

    def prepare_image(self, path: Path, options: PrepareOptions) -> Pack:
        """A picture as a pack."""

    def prepare_pages(self, path: Path, pages: Sequence[int], options: PrepareOptions) -> Iterator[PageOutcome]:
        """Pages of a document, one outcome each."""

    def prepare_video(self, path: Path, options: PrepareOptions) -> Pack:
        """Sampled frames as a pack."""


@dataclass(frozen=True, kw_only=True)
class StoredPack:
    """A pack that lies in the blob store."""

    ref: PackRef
    media_hash: str


class PackShelf(Protocol):
    """The packs of all tenants: a row each, a blob each (`pipelines.steps.shelf`)."""

    def find(self, key: str) -> StoredPack | None:
        """A pack that may be reused; finding it keeps it from being collected."""

    def store(self, key: str, spec: JobSpec, data: bytes, *, tiles: int, media_hash: str) -> StoredPack:
        """Put the blob, then the row."""


@dataclass(frozen=True, kw_only=True)
class PrepareTools:
    """What PREPARE needs. `output`: what the engines of this installation eat; `tile`: their side in pixels."""

    fetch: Callable[[JobSpec, MediaRef], AbstractContextManager[SourceFile]]
    decoder: Decode
    shelf: PackShelf
    output: Output
    tile: int = TILE
    uniform: Callable[[float, float], float] = random.uniform


def prepare(items: Sequence[ClaimedItem], spec: JobSpec, tools: PrepareTools) -> list[Result]:
    """Prepare items of one document; one outcome each, nothing is raised but what ends the process."""
    try:
        return _Preparation(items, spec, tools).run()
    except Exception as error:  # noqa: BLE001 - the boundary: any failure becomes a typed outcome
        _log.warning("prepare_failed", job_id=str(spec.job_id), seqs=[item.seq for item in items], exc_info=error)
        return [(item, after_failure(error, fails=item.fails, uniform=tools.uniform)) for item in items]


class _Preparation:
    def __init__(self, items: Sequence[ClaimedItem], spec: JobSpec, tools: PrepareTools) -> None:
        self._items = items
        self._spec = spec
        self._tools = tools
        self._document = items[0].document
        self._kind: AnyKind = registry.get(spec.kind)
        parameters = self._kind.parse_parameters({**spec.parameters, **self._document.overrides})
        preprocessing = self._kind.preprocessing(parameters)
        self._options = options_of(preprocessing, tools.output, tools.tile)
        self._media_tiles = preprocessing.media_tiles

    def run(self) -> list[Result]:
        with ExitStack() as open_files:
            files = [open_files.enter_context(self._tools.fetch(self._spec, media)) for media in self._document.media]
            versions = tuple(file.version for file in files)
            done: dict[int, Outcome] = {}
            missing: list[tuple[ClaimedItem, str]] = []
            for item in self._items:
                key = self._key(item, files)
                found = self._tools.shelf.find(key)
                if found is None:
                    missing.append((item, key))
                else:
                    done[item.seq] = Prepared(pack=found.ref, media_hash=found.media_hash, versions=versions)
            if missing:
                done.update(self._cut(missing, files, versions))
        return [(item, done[item.seq]) for item in self._items]

    def _key(self, item: ClaimedItem, files: Sequence[SourceFile]) -> str:
        source = hashlib.sha256("\n".join(file.sha256 for file in files).encode()).hexdigest()
        parameters: dict[str, object] = {
            "page": item.page,
            "image": self._options(MediaClass.IMAGE).parameters(),
            "video": self._options(MediaClass.VIDEO).parameters(),
        }
        if self._media_tiles:
            parameters["media_tiles"] = list(self._media_tiles)
        return packs.pack_key(str(self._spec.tenant_id), source, parameters)

    def _cut(
        self, missing: Sequence[tuple[ClaimedItem, str]], files: Sequence[SourceFile], versions: tuple[str | None, ...]
    ) -> dict[int, Outcome]:
        keys = {item.seq: key for item, key in missing}
        done: dict[int, Outcome] = {}
        paged = [item for item, _ in missing if item.page is not None]
        by_page = {item.page: item for item in paged}
        if paged:
            pages = [item.page for item in paged if item.page is not None]
            options = self._options(MediaClass.DOCUMENT)
            for outcome in self._tools.decoder.prepare_pages(files[0].path, pages, options):
                item = by_page[outcome.page]
                if outcome.pack is None:
                    failure = outcome.error or RuntimeError("the decoder gave neither a pack nor an error")
                    done[item.seq] = after_failure(failure, fails=item.fails, uniform=self._tools.uniform)
                    continue
                views = (MediumView(media_class=MediaClass.DOCUMENT),)
                done[item.seq] = self._store(keys[item.seq], with_views(outcome.pack, views), versions)
        for item, key in missing:
            if item.page is None:
                done[item.seq] = self._store(key, self._whole(files), versions)
        return done

    def _whole(self, files: Sequence[SourceFile]) -> Pack:
        parts: list[tuple[Pack, MediumView]] = []
        for index, file in enumerate(files):
            media_class = class_of(file.media_type)
            if media_class is MediaClass.DOCUMENT and file.media_type is MediaType.TIFF:
                media_class = MediaClass.IMAGE  # a TIFF as one item is its first page
            if media_class not in self._kind.media:
                reads = ", ".join(sorted(self._kind.media - {MediaClass.NONE}))
                raise UnsupportedMedia(
                    f"{self._document.name} is a {media_class}, but {self._kind.name} reads: {reads}"
                )
            options = self._options(media_class)
            if index < len(self._media_tiles):
                options = replace(options, max_tiles=self._media_tiles[index])
            if media_class is MediaClass.VIDEO:
                pack = self._tools.decoder.prepare_video(file.path, options)
            else:
                pack = self._tools.decoder.prepare_image(file.path, options)
            parts.append((pack, MediumView(media_class=media_class, images=images_in(pack))))
        return combine(parts, self._tools.output)

    def _store(self, key: str, pack: Pack, versions: tuple[str | None, ...]) -> Prepared:
        media_hash = media_hash_of(pack)
        tiles = len(pack.tiles) if isinstance(pack, TilePack) else 0
        stored = self._tools.shelf.store(key, self._spec, packs.encode(pack), tiles=tiles, media_hash=media_hash)
        return Prepared(pack=stored.ref, media_hash=stored.media_hash, versions=versions)


def options_of(preprocessing: Preprocessing, output: Output, tile: int) -> Callable[[MediaClass], PrepareOptions]:
    """The decoder's options for a class of media."""

    def choose(media_class: MediaClass) -> PrepareOptions:
        video = media_class is MediaClass.VIDEO
        return PrepareOptions(
            output=output,
            tile=tile,
            max_tiles=preprocessing.frame_tiles if video else preprocessing.max_tiles,
            dpi=preprocessing.dpi,
            num_segments=preprocessing.num_segments,
            bound=preprocessing.bound if video else None,
            fps=preprocessing.fps if video else None,
        )

    return choose


def class_of(media_type: MediaType) -> MediaClass:
    """The kind contract's class of a sniffed type."""
    if media_type.is_video:
        return MediaClass.VIDEO
    return MediaClass.DOCUMENT if media_type.is_document else MediaClass.IMAGE


def images_in(pack: Pack) -> int:
    """Images (frames) in a pack."""
    return len(pack.counts) if isinstance(pack, TilePack) else len(pack.images)


def combine(parts: Sequence[tuple[Pack, MediumView]], output: Output) -> Pack:
    """One pack of several media, in order; without any medium, an empty pack (a text-only item)."""
    views = tuple(view for _, view in parts)
    if len(parts) == 1:
        return with_views(parts[0][0], views)
    if output is Output.IMAGES:
        images = tuple(image for pack, _ in parts if isinstance(pack, EncodedPack) for image in pack.images)
        return with_views(EncodedPack(images=images), views)
    cut = [pack for pack, _ in parts if isinstance(pack, TilePack)]
    tiles = np.concatenate([pack.tiles for pack in cut]) if cut else np.empty((0, TILE, TILE, 3), np.uint8)
    return with_views(
        TilePack(
            tiles=tiles,
            counts=tuple(count for pack in cut for count in pack.counts),
            digests=tuple(digest for pack in cut for digest in pack.digests),
        ),
        views,
    )


def with_views(pack: Pack, views: Sequence[MediumView]) -> Pack:
    """The pack, saying what each medium in it is."""
    about = json.dumps([{"class": str(view.media_class), "images": view.images} for view in views])
    return replace(pack, meta={**pack.meta, "views": about})


def views_of(meta: Mapping[str, str]) -> tuple[MediumView, ...]:
    """The inverse of `with_views`."""
    return tuple(
        MediumView(media_class=MediaClass(view["class"]), images=int(view["images"]))
        for view in json.loads(meta["views"])
    )


def media_hash_of(pack: Pack) -> str:
    """SHA-256 (hex) over what the model will see, image by image: what binds an answer to its medium."""
    digests = pack.digests if isinstance(pack, TilePack) else tuple(image.digest for image in pack.images)
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
