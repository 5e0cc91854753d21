"""The media type from the first bytes, never from a name or a Content-Type."""

from __future__ import annotations

import enum

SNIFF_BYTES = 4096
"""So many leading bytes are enough for `sniff`."""


class MediaType(enum.StrEnum):
    """What we read. The value is the usual MIME type."""

    JPEG = "image/jpeg"
    PNG = "image/png"
    WEBP = "image/webp"
    GIF = "image/gif"
    TIFF = "image/tiff"
    PDF = "application/pdf"
    MP4 = "video/mp4"
    QUICKTIME = "video/quicktime"
    MATROSKA = "video/x-matroska"
    WEBM = "video/webm"
    AVI = "video/x-msvideo"

    @property
    def is_image(self) -> bool:
        """One picture (of an animation, the first frame). TIFF is a document: it may hold many pages."""
        return self in _IMAGES

    @property
    def is_document(self) -> bool:
        """Something of pages."""
        return self in _DOCUMENTS

    @property
    def is_video(self) -> bool:
        """Something of frames."""
        return not (self.is_image or self.is_document)


_IMAGES = frozenset({MediaType.JPEG, MediaType.PNG, MediaType.WEBP, MediaType.GIF})
_DOCUMENTS = frozenset({MediaType.PDF, MediaType.TIFF})
# ISO base media brands that are pictures or sound, not video: HEIF, AVIF, M4A.
_NOT_VIDEO_BRANDS = frozenset(
    {b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis", b"M4A ", b"M4B "}
)
_QUICKTIME_ATOMS = frozenset({b"moov", b"mdat", b"wide", b"free", b"skip"})


def sniff(head: bytes) -> MediaType | None:
    """The type that the first `SNIFF_BYTES` bytes show, or None for anything we do not read."""
    if head.startswith(b"\xff\xd8\xff"):
        return MediaType.JPEG
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return MediaType.PNG
    if head.startswith((b"GIF87a", b"GIF89a")):
        return MediaType.GIF
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):  # the last two are BigTIFF
        return MediaType.TIFF
    if head.startswith(b"RIFF"):
        return {b"WEBP": MediaType.WEBP, b"AVI ": MediaType.AVI}.get(head[8:12])
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return MediaType.WEBM if b"webm" in head[:64] else MediaType.MATROSKA
    if head[4:8] == b"ftyp":
        return _iso_media(head[8:12])
    if head[4:8] in _QUICKTIME_ATOMS:
        return MediaType.QUICKTIME
    if b"%PDF-" in head[:1024]:  # readers accept a kilobyte of rubbish before the header, and scanners produce it
        return MediaType.PDF
    return None


def _iso_media(brand: bytes) -> MediaType | None:
    if brand in _NOT_VIDEO_BRANDS:
        return None
    return MediaType.QUICKTIME if brand == b"qt  " else MediaType.MP4
