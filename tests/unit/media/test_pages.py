"""PDF and TIFF pages, and what a file is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.jobs.errors import (
    CorruptMedia,
    EmptyDocument,
    EncryptedDocument,
    MediaNotFound,
    MediaTooLarge,
    TooManyPages,
    UnsupportedMedia,
)
from pipelines.media.limits import MediaLimits
from pipelines.media.pages import PdfFile, TiffFile, open_document, probe
from pipelines.media.sniff import MediaType
from tests.unit.media.samples import black_square, encoded, encrypted_pdf, pdf

LIMITS = MediaLimits()


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_a_page_is_rendered_at_its_resolution(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pdf", pdf([(200, 100, black_square(0, 0, 50)), (72, 72, b"")]))
    with PdfFile(path, LIMITS) as document:
        assert document.pages == 2
        page = document.render(0, dpi=144)
        assert (page.mode, page.size) == ("RGB", (400, 200))
        pixels = np.asarray(page)
        assert pixels[105:195, 5:95].max() == 0  # the lower left quarter inch of PDF coordinates
        assert pixels[:95].min() == 255
        assert document.render(1, dpi=72).size == (72, 72)


def test_a_form_field_is_drawn(tmp_path: Path) -> None:
    form = b"<< /Type /XObject /Subtype /Form /BBox [0 0 50 50] /Length 24 >>"
    appearance = form + b"\nstream\n0 0 0 rg 0 0 50 50 re f \nendstream"
    field = b"<< /Type /Annot /Subtype /Widget /FT /Tx /T (a) /V (x) /Rect [10 10 60 60] /P 3 0 R /AP << /N 6 0 R >> >>"
    data = pdf([(100, 100, b"")], extra=[field, appearance, b"<< /Fields [5 0 R] >>"])
    data = data.replace(b"/Resources << >>", b"/Annots [5 0 R]    "[:16])
    # The catalogue grows, so the offsets shift: pdfium rebuilds the table.
    data = data.replace(b"/Type /Catalog", b"/Type /Catalog /AcroForm 7 0 R")
    with PdfFile(write(tmp_path / "a.pdf", data), LIMITS) as document:
        assert np.asarray(document.render(0, dpi=72))[50:80, 20:50].mean() < 50


def test_an_encrypted_pdf_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pdf", encrypted_pdf())
    with pytest.raises(EncryptedDocument, match="password"):
        PdfFile(path, LIMITS)


def test_a_pdf_with_an_empty_user_password_opens(tmp_path: Path) -> None:
    with PdfFile(write(tmp_path / "a.pdf", encrypted_pdf(b"")), LIMITS) as document:
        assert document.pages == 1


def test_a_pdf_without_pages_is_empty(tmp_path: Path) -> None:
    with pytest.raises(EmptyDocument):
        PdfFile(write(tmp_path / "a.pdf", pdf([])), LIMITS)


@pytest.mark.parametrize("keep", [20, 100, 200])
def test_a_damaged_pdf_is_corrupt(tmp_path: Path, keep: int) -> None:
    with pytest.raises((CorruptMedia, EmptyDocument)):
        PdfFile(write(tmp_path / "a.pdf", pdf([(100, 100, b"")])[:keep]), LIMITS)


def test_a_damaged_page_leaves_the_others(tmp_path: Path) -> None:
    data = pdf([(50, 50, b""), (60, 60, b""), (70, 70, b"")]).replace(b"5 0 R", b"9 0 R", 1)
    with PdfFile(write(tmp_path / "a.pdf", data), LIMITS) as document:
        assert document.pages == 3
        with pytest.raises(CorruptMedia, match="Page 2"):
            document.render(1, dpi=72)
        assert document.render(0, dpi=72).size == (50, 50)
        assert document.render(2, dpi=72).size == (70, 70)


def test_a_page_that_would_be_too_large_says_how_to_make_it_smaller(tmp_path: Path) -> None:
    with PdfFile(write(tmp_path / "a.pdf", pdf([(14_400, 14_400, b"")])), LIMITS) as document:
        with pytest.raises(MediaTooLarge, match="lower `dpi`"):
            document.render(0, dpi=150)
        assert document.render(0, dpi=36).size == (7200, 7200)


def test_a_page_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with PdfFile(write(tmp_path / "a.pdf", pdf([(50, 50, b"")])), LIMITS) as document:
        for page in (-1, 1):
            with pytest.raises(MediaNotFound):
                document.render(page, dpi=72)


def test_too_many_pages_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TooManyPages):
        PdfFile(write(tmp_path / "a.pdf", pdf([(10, 10, b"")] * 4)), MediaLimits(pages=3))
    pages = [Image.new("L", (4, 4))] * 4
    path = write(tmp_path / "a.tiff", encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:]))
    with pytest.raises(TooManyPages):
        TiffFile(path, MediaLimits(pages=3))


@pytest.fixture
def tiff(tmp_path: Path) -> Path:
    pages = [Image.new("1", (40, 30), 1), Image.new("RGB", (20, 50), "red"), Image.new("CMYK", (9, 9))]
    return write(tmp_path / "a.tiff", encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:]))


def test_every_page_of_a_tiff_is_rendered_in_any_order(tiff: Path) -> None:
    with open_document(tiff, MediaType.TIFF, LIMITS) as document:
        assert document.pages == 3
        last, first, middle = (document.render(page, dpi=150) for page in (2, 0, 1))
        assert (first.size, middle.size, last.size) == ((40, 30), (20, 50), (9, 9))
        assert {image.mode for image in (first, middle, last)} == {"RGB"}
        assert first.getpixel((0, 0)) == (255, 255, 255)
        assert middle.getpixel((0, 0)) == (255, 0, 0)
        with pytest.raises(MediaNotFound):
            document.render(3, dpi=150)


def test_a_tiff_whose_directories_go_in_a_circle_ends(tmp_path: Path) -> None:
    data = bytearray(encoded(Image.new("L", (4, 4)), "TIFF"))
    start = int.from_bytes(data[4:8], "little")
    entries = int.from_bytes(data[start : start + 2], "little")
    behind = start + 2 + 12 * entries
    data[behind : behind + 4] = start.to_bytes(4, "little")
    path = write(tmp_path / "a.tiff", bytes(data))
    try:
        with TiffFile(path, MediaLimits(pages=50)) as document:
            assert document.pages == 1
    except (TooManyPages, CorruptMedia):
        return


def test_a_large_page_of_a_tiff_costs_that_page_alone(tmp_path: Path) -> None:
    pages = [Image.new("1", (100, 100)), Image.new("1", (2000, 2000)), Image.new("1", (100, 100))]
    path = write(tmp_path / "a.tiff", encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:]))
    with TiffFile(path, MediaLimits(pixels=1_000_000)) as document:
        assert document.render(0).size == (100, 100)
        with pytest.raises(MediaTooLarge):
            document.render(1)
        assert document.render(2).size == (100, 100)


def test_probe_tells_what_a_file_is(tmp_path: Path, tiff: Path, clips: Path) -> None:
    info = probe(write(tmp_path / "x", encoded(Image.new("RGB", (30, 20)), "PNG")), LIMITS)
    assert (info.type, info.pages, info.width, info.height) == (MediaType.PNG, 1, 30, 20)
    info = probe(write(tmp_path / "y.png", pdf([(300, 200, b"")] * 7)), LIMITS)
    assert (info.type, info.pages, info.width, info.height) == (MediaType.PDF, 7, 300, 200)
    info = probe(tiff, LIMITS)
    assert (info.type, info.pages) == (MediaType.TIFF, 3)
    info = probe(clips / "h264.mp4", LIMITS)
    assert (info.type, info.pages, info.frames, info.fps) == (MediaType.MP4, 1, 90, 25.0)
    assert info.seconds == pytest.approx(3.6, abs=0.1)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", EmptyDocument),
        (b"hello", UnsupportedMedia),
        (b"\x89PNG\r\n\x1a\n rubbish", (CorruptMedia, UnsupportedMedia)),
        (b"\0\0\0\x18ftypisom" + b"\0" * 50, CorruptMedia),
        (b"II*\0\xff\xff\xff\xff", (CorruptMedia, UnsupportedMedia)),
        (b"%PDF-1.7\nnothing", CorruptMedia),
    ],
    ids=["empty", "text", "png", "mp4", "tiff", "pdf"],
)
def test_probe_refuses_clearly(tmp_path: Path, data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        probe(write(tmp_path / "x", data), LIMITS)


def test_probe_keeps_the_limits(tmp_path: Path, clips: Path) -> None:
    picture = write(tmp_path / "x", encoded(Image.new("RGB", (300, 200)), "PNG"))
    for limits in (MediaLimits(pixels=59_999), MediaLimits(image_bytes=100)):
        with pytest.raises(MediaTooLarge):
            probe(picture, limits)
    with pytest.raises(MediaTooLarge):
        probe(clips / "h264.mp4", MediaLimits(video_seconds=1))
