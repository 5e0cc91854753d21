"""PREPARE, one document: decode in the isolated child, cut tiles or sample frames.

The items of a document are consecutive pages of it, so its file is fetched once and opened once. A page that fails
fails alone. A pack is named by its content and parameters: what another job of the tenant has prepared is reused. How
the documents of one message go together stands in `pipelines.steps.prepare_batch`.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from pipelines.jobs.errors import UnsupportedMedia
from pipelines.jobs.models import ClaimedItem, JobSpec, MediaRef, PackRef
from pipelines.jobs.outcomes import Outcome
from pipelines.kinds import registry
from pipelines.kinds.base import MediaClass, MediumView, Preprocessing
from pipelines.kinds.registry import AnyKind
from pipelines.media import pack as packs
from pipelines.media.images import TILE
from pipelines.media.isolate import PageOutcome
from pipelines.media.options import Output, PrepareOptions
from pipelines.media.pack import EncodedPack, Pack, TilePack
from pipelines.media.sniff import MediaType

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


@dataclass(frozen=True, kw_only=True)
class PutPack:
    """A pack whose bytes are safe but which nobody can find yet. `inline`: its bytes, where no blob was written."""

    stored: StoredPack
    inline: bytes | None = None


class PackShelf(Protocol):
    """The packs of all tenants: a row each, a blob each unless they are small (`pipelines.steps.shelf`)."""

    def find(self, keys: Sequence[str]) -> Mapping[str, StoredPack]:
        """Those of `keys` that may be reused; finding one keeps it from being collected."""

    def put(self, key: str, data: bytes, *, tiles: int, media_hash: str) -> PutPack:
        """Write the blob, unless the pack is small. Called from several threads."""

    def record(self, spec: JobSpec, packs: Sequence[PutPack]) -> None:
        """Then the rows, in one transaction."""


@dataclass(frozen=True, kw_only=True)
class PrepareTools:
    """What PREPARE needs. `output`: what the engines of this installation eat; `tile`: their side in pixels.

    `threads`: where sources are fetched and packs written while the decoder works.
    """

    fetch: Callable[[JobSpec, MediaRef], AbstractContextManager[SourceFile]]
    decoder: Decode
    shelf: PackShelf
    output: Output
    threads: Executor
    tile: int = TILE
    uniform: Callable[[float, float], float] = random.uniform


class DocumentPreparation:
    """The items of one document on their way to packs. Not thread-safe; `close` lets its files go."""

    def __init__(self, items: Sequence[ClaimedItem], spec: JobSpec, tools: PrepareTools) -> None:
        self.items = items
        self._spec = spec
        self._tools = tools
        self._document = items[0].document
        self._kind: AnyKind = registry.get(spec.kind)
        parameters = self._kind.parse_parameters({**spec.parameters, **self._document.overrides})
        preprocessing = self._kind.preprocessing(parameters)
        self._options = options_of(preprocessing, tools.output, tools.tile)
        self._media_tiles = preprocessing.media_tiles
        self._open = ExitStack()
        self._files: list[SourceFile] = []

    def fetch(self) -> None:
        """Bring its media to this disk. Raises what `PrepareTools.fetch` raises."""
        for media in self._document.media:
            self._files.append(self._open.enter_context(self._tools.fetch(self._spec, media)))

    @property
    def versions(self) -> tuple[str | None, ...]:
        """What was really read, medium by medium."""
        return tuple(file.version for file in self._files)

    def key(self, item: ClaimedItem) -> str:
        """The name of an item's pack; its document has been fetched."""
        source = hashlib.sha256("\n".join(file.sha256 for file in self._files).encode()).hexdigest()
        parameters: dict[str, object] = {
            "page": item.page,
            "image": self._options(MediaClass.IMAGE).parameters(),
            "video": self._options(MediaClass.VIDEO).parameters(),
        }
        if self._media_tiles:
            parameters["media_tiles"] = list(self._media_tiles)
        return packs.pack_key(str(self._spec.tenant_id), source, parameters)

    def cut(self, items: Sequence[ClaimedItem]) -> Iterator[tuple[ClaimedItem, Pack | BaseException]]:
        """The packs of `items`, one in memory at a time; an item that fails gives its error and harms no other."""
        paged = {item.page: item for item in items if item.page is not None}
        if paged:
            options = self._options(MediaClass.DOCUMENT)
            try:
                for outcome in self._tools.decoder.prepare_pages(self._files[0].path, list(paged), options):
                    item = paged.pop(outcome.page)
                    if outcome.pack is None:
                        yield item, outcome.error or RuntimeError("the decoder gave neither a pack nor an error")
                    else:
                        yield item, with_views(outcome.pack, (view_of(outcome.pack, MediaClass.DOCUMENT),))
            except Exception as error:  # noqa: BLE001 - handed on: the caller makes an outcome of it
                for item in paged.values():
                    yield item, error
        for item in items:
            if item.page is None:
                try:
                    whole = self._whole()
                except Exception as error:  # noqa: BLE001 - handed on: the caller makes an outcome of it
                    yield item, error
                else:
                    yield item, whole

    def close(self) -> None:
        """Let the files go. Repeatable."""
        self._open.close()

    def _whole(self) -> Pack:
        parts: list[tuple[Pack, MediumView]] = []
        for index, file in enumerate(self._files):
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
            parts.append((pack, view_of(pack, media_class)))
        return combine(parts, self._tools.output)


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


def view_of(pack: Pack, media_class: MediaClass) -> MediumView:
    """What the decoder told of a medium."""
    columns, _, rows = pack.meta.get("grid", "").partition("x")
    return MediumView(
        media_class=media_class,
        images=images_in(pack),
        blank=pack.meta.get("blank") == "yes",
        grid=(int(columns), int(rows)) if rows else None,
    )


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
    about = [
        {"class": str(view.media_class), "images": view.images, "blank": view.blank, "grid": view.grid}
        for view in views
    ]
    return replace(pack, meta={**pack.meta, "views": json.dumps(about)})


def views_of(meta: Mapping[str, str]) -> tuple[MediumView, ...]:
    """The inverse of `with_views`."""
    return tuple(
        MediumView(
            media_class=MediaClass(view["class"]),
            images=int(view["images"]),
            blank=view.get("blank", False),
            grid=tuple(grid) if (grid := view.get("grid")) else None,
        )
        for view in json.loads(meta["views"])
    )


def media_hash_of(pack: Pack) -> str:
    """SHA-256 (hex) over what the model will see, image by image: what binds an answer to its medium."""
    digests = pack.digests if isinstance(pack, TilePack) else tuple(image.digest for image in pack.images)
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
