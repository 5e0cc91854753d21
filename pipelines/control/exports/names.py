"""Names of exported files: made of what a client called its documents, safe wherever they end up.

A name may hold anything, `../` and control characters too, and several documents may have the same. So each begins with
the document's number, which makes it unique, and keeps of the rest only letters, digits and a few signs.
"""

from __future__ import annotations

import unicodedata

_KEPT = frozenset("._-+=@ ")
_LONGEST = 120  # bytes; file systems end at 255
_FIRST_PAGE = 1


def file_name(*, doc: int, name: str, page: int | None, suffix: str) -> str:
    """`0000012-scan.pdf/page-0003.md`, or `0000012-photo.png.md` where a document has no pages. `page` is 0-based."""
    stem = f"{doc:07d}-{safe(name)}"
    return f"{stem}{suffix}" if page is None else f"{stem}/page-{page + _FIRST_PAGE:04d}{suffix}"


def safe(name: str) -> str:
    """One part of a path: never empty, never `.` or `..`, no separators, at most 120 bytes."""
    plain = unicodedata.normalize("NFC", name.encode("utf-8", "replace").decode("utf-8"))
    kept = "".join(character if character.isalnum() or character in _KEPT else "_" for character in plain)
    kept = " ".join(kept.split()).strip(". ")
    # Cut in bytes, at a whole character; what a cut may leave at the end goes as well.
    kept = kept.encode()[:_LONGEST].decode("utf-8", "ignore").strip(". ")
    return kept or "unnamed"
