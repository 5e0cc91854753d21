"""Documents: PDF through pdfium, TIFF through Pillow; and `probe`, which says what a file is."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from PIL import Image

from pipelines.jobs.errors import (
    BatchsightError,
    CorruptMedia,
    EmptyDocument,
    EncryptedDocument,
    MediaNotFound,
    MediaTooLarge,
    TooManyPages,
    UnsupportedMedia,
)
from pipelines.media import images
from pipelines.media.limits import MediaLimits
from pipelines.media.sniff import SNIFF_BYTES, MediaType, sniff

POINTS_AN_INCH = 72


@dataclass(frozen=True, kw_only=True)
class DocumentInfo:
    """What `probe` found. `pages` is 1 for pictures and videos; `width` and `height` in pixels (PDF: points, of page
    1).

    `frames` and `fps` are what a video's container claims; 0 where it does not say.
    """

    type: MediaType
    pages: int
    width: int = 0
    height: int = 0
    frames: int = 0
    fps: float = 0.0
    seconds: float = 0.0


class Document(Protocol):
    """An open document. Pages count from 0."""

    @property
    def pages(self) -> int:
        """Number of pages, at least 1."""

    def render(self, page: int, *, dpi: int, keep_grey: bool = False) -> Image.Image:
        """One page as an upright RGB picture. Raises a `MediaError` that concerns this page alone."""

    def close(self) -> None:
        """Free the file. Repeatable."""

    def __enter__(self) -> Self:
        """The document."""

    def __exit__(self, *exc: object) -> None:
        """Close."""


class _Closing:
    def close(self) -> None:
        """Free the file. Repeatable."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class PdfFile(_Closing):
    """A PDF. pdfium reads from the file as it needs to, so memory does not grow with the number of pages."""

    def __init__(self, path: Path, limits: MediaLimits) -> None:
        # Native code that only children with a PDF need, and without types.
        pypdfium2: Any = importlib.import_module("pypdfium2")

        self._limits = limits
        self._document: Any = None
        self._error: type[Exception] = pypdfium2.PdfiumError
        try:
            self._document = pypdfium2.PdfDocument(self._load(path, pypdfium2.raw))
            self._document.init_forms()  # or the text that a form was filled with is not drawn
            self.pages = len(self._document)
        except self._error as error:
            self.close()
            raise CorruptMedia("The PDF is damaged and does not open.") from error
        try:
            _check_pages(self.pages, limits)
        except BatchsightError:
            self.close()
            raise

    @staticmethod
    def _load(path: Path, raw: Any) -> Any:
        # Not left to pypdfium2: for a document without pages it reports whatever error came before.
        handle = raw.FPDF_LoadDocument(os.fsencode(path) + b"\0", None)
        if not handle:
            if raw.FPDF_GetLastError() == raw.FPDF_ERR_PASSWORD:
                raise EncryptedDocument("The PDF needs a password; send it without encryption.")
            raise CorruptMedia("The PDF is damaged and does not open.")
        if raw.FPDF_GetPageCount(handle) < 1:
            raw.FPDF_CloseDocument(handle)
            raise EmptyDocument("The document has no page.")
        return handle

    def size(self, page: int) -> tuple[float, float]:
        """Width and height of a page in points."""
        with self._page(page) as handle:
            width, height = handle.get_size()
            return float(width), float(height)

    def render(self, page: int, *, dpi: int, keep_grey: bool = False) -> Image.Image:
        """One page on white, at `dpi` dots an inch. Raises `MediaNotFound`, `MediaTooLarge`, `CorruptMedia`."""
        del keep_grey
        with self._page(page) as handle:
            scale = dpi / POINTS_AN_INCH
            width, height = (side * scale for side in handle.get_size())
            if width < 1 or height < 1:
                raise CorruptMedia(f"Page {page + 1} of the PDF has no area.")
            if width * height > self._limits.pixels:
                raise MediaTooLarge(
                    f"Page {page + 1} would have {width:.0f} x {height:.0f} pixels at {dpi} dpi; lower `dpi` to "
                    f"stay under {self._limits.pixels / 1e6:.0f} megapixels."
                )
            bitmap = handle.render(scale=scale, rev_byteorder=True)
            try:
                picture: Image.Image = bitmap.to_pil()
                return picture.convert("RGB") if picture.mode != "RGB" else picture.copy()
            finally:
                bitmap.close()

    @contextmanager
    def _page(self, page: int) -> Iterator[Any]:
        if not 0 <= page < self.pages:
            raise MediaNotFound(f"The PDF has {self.pages} pages; there is no page {page + 1}.")
        handle = None
        try:
            handle = self._document[page]
            yield handle
        except self._error as error:
            raise CorruptMedia(f"Page {page + 1} of the PDF is damaged and does not render.") from error
        finally:
            if handle is not None:
                handle.close()

    def close(self) -> None:
        """Close pdfium's document."""
        if self._document is not None:
            self._document.close()
            self._document = None


class TiffFile(_Closing):
    """A TIFF of one or many pages."""

    def __init__(self, path: Path, limits: MediaLimits) -> None:
        self._limits = limits
        self._file = path.open("rb")
        try:
            with images.reading("TIFF"):
                self._image = images.open_lazily(self._file, limits)
                self.pages = self._count()
            _check_pages(self.pages, limits)
        except BatchsightError:
            self._file.close()
            raise
        self.size = self._image.size

    def _count(self) -> int:
        # Not `n_frames`: that walks a hostile chain of directories to its end.
        pages = 0
        while pages <= self._limits.pages:
            try:
                self._image.seek(pages)
            except EOFError:
                break
            pages += 1
        self._image.seek(0)
        return pages

    def render(self, page: int, *, dpi: int = 0, keep_grey: bool = False) -> Image.Image:
        """One page at its own resolution; `dpi` is for PDF."""
        del dpi
        if not 0 <= page < self.pages:
            raise MediaNotFound(f"The TIFF has {self.pages} pages; there is no page {page + 1}.")
        with images.reading(f"page {page + 1} of the TIFF"):
            self._image.seek(page)
            images.check_pixels(*self._image.size, self._limits)
            picture = images.finish(self._image, keep_grey=keep_grey)
            return picture.copy() if picture is self._image else picture

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _check_pages(pages: int, limits: MediaLimits) -> None:
    if pages < 1:
        raise EmptyDocument("The document has no page.")
    if pages > limits.pages:
        raise TooManyPages(f"The document has more than {limits.pages:,} pages; split it.")


def open_document(path: Path, kind: MediaType, limits: MediaLimits) -> PdfFile | TiffFile:
    """Open a PDF or TIFF.

    Raises `EncryptedDocument`, `EmptyDocument`, `TooManyPages`, `CorruptMedia`, `UnsupportedMedia`.
    """
    if kind is MediaType.PDF:
        return PdfFile(path, limits)
    if kind is MediaType.TIFF:
        return TiffFile(path, limits)
    raise UnsupportedMedia(f"{kind} is not a document of pages.")


def sniff_file(path: Path) -> MediaType:
    """The type of a file by its first bytes. Raises `UnsupportedMedia`, `EmptyDocument` for a file of no bytes."""
    with path.open("rb") as file:
        head = file.read(SNIFF_BYTES)
    if not head:
        raise EmptyDocument("The file is empty.")
    kind = sniff(head)
    if kind is None:
        raise UnsupportedMedia("The file is none of JPEG, PNG, WebP, GIF, TIFF, PDF, MP4, MOV, MKV, WebM, AVI.")
    return kind


def probe(path: Path, limits: MediaLimits) -> DocumentInfo:
    """What a file is and how many pages it has, decoding no pixel. Raises what opening it raises."""
    kind = sniff_file(path)
    if kind.is_video:
        return _probe_video(path, kind, limits)
    if kind is MediaType.PDF:
        with PdfFile(path, limits) as pdf:
            width, height = pdf.size(0)
            return DocumentInfo(type=kind, pages=pdf.pages, width=round(width), height=round(height))
    if kind is MediaType.TIFF:
        with TiffFile(path, limits) as tiff:
            return DocumentInfo(type=kind, pages=tiff.pages, width=tiff.size[0], height=tiff.size[1])
    if path.stat().st_size > limits.image_bytes:
        raise MediaTooLarge(f"The image is larger than the accepted {limits.image_bytes:,} bytes.")
    with images.reading("image"), path.open("rb") as file:
        width, height = images.open_lazily(file, limits).size
        return DocumentInfo(type=kind, pages=1, width=width, height=height)


def _probe_video(path: Path, kind: MediaType, limits: MediaLimits) -> DocumentInfo:
    import av  # noqa: PLC0415 - native code that only children with a video need

    from pipelines.media.frames import check_video  # noqa: PLC0415 - with it

    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            if not container.streams.video:
                raise UnsupportedMedia("The file holds no video stream.")
            stream = container.streams.video[0]
            fps = float(stream.average_rate or stream.guessed_rate or 0)
            seconds = float(container.duration or 0) / av.time_base
            frames = stream.frames or round(seconds * fps)
            width, height = stream.width, stream.height
    except (av.FFmpegError, ValueError, IndexError) as error:
        raise CorruptMedia("The video is damaged and does not open.") from error
    check_video(width=width, height=height, frames=frames, fps=fps, limits=limits)
    return DocumentInfo(type=kind, pages=1, width=width, height=height, frames=frames, fps=fps, seconds=seconds)
