"""Types from bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from pipelines.media.sniff import MediaType, sniff
from tests.unit.media.samples import clip, encoded, pdf

PICTURE = Image.new("RGB", (8, 8))


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (encoded(PICTURE, "JPEG"), MediaType.JPEG),
        (encoded(PICTURE, "PNG"), MediaType.PNG),
        (encoded(PICTURE, "WEBP"), MediaType.WEBP),
        (encoded(PICTURE, "GIF"), MediaType.GIF),
        (encoded(PICTURE, "TIFF"), MediaType.TIFF),
        (pdf([(10, 10, b"")]), MediaType.PDF),
        (b"\r\n junk of a scanner \r\n" + pdf([(10, 10, b"")]), MediaType.PDF),
        (b"II+\0\x08\0\0\0", MediaType.TIFF),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_pictures_and_documents(data: bytes, kind: MediaType) -> None:
    assert sniff(data[:4096]) is kind


@pytest.mark.parametrize(
    ("name", "codec", "kind"),
    [
        ("a.mp4", "mpeg4", MediaType.MP4),
        ("a.mov", "mpeg4", MediaType.QUICKTIME),
        ("a.mkv", "mpeg4", MediaType.MATROSKA),
        ("a.webm", "libvpx-vp9", MediaType.WEBM),
        ("a.avi", "mpeg4", MediaType.AVI),
    ],
)
def test_videos(tmp_path: Path, name: str, codec: str, kind: MediaType) -> None:
    path = clip(tmp_path / name, 3, codec=codec, width=64, height=64)
    assert sniff(path.read_bytes()[:4096]) is kind


@pytest.mark.parametrize(
    "data",
    [b"", b"x", b"RIFF\0\0\0\0WAVE", b"\0\0\0\x18ftypheic", b"\0\0\0\x18ftypM4A ", b"PK\x03\x04", b"<html>%PDF"],
    ids=repr,
)
def test_everything_else_is_nothing(data: bytes) -> None:
    assert sniff(data) is None


def test_each_type_is_of_one_class() -> None:
    for kind in MediaType:
        assert [kind.is_image, kind.is_document, kind.is_video].count(True) == 1
