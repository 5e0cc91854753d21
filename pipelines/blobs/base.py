"""The port of the blob store: where uploads, tile packs and exports lie, and how objects in anybody's buckets are read.

One conformance suite holds `s3`, `local` and `memory` to what is written here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from pipelines.jobs.errors import InvalidParameter

CHUNK_BYTES = 1024 * 1024
MAX_KEY_BYTES = 1024  # S3's own limit

Data = bytes | Path | Iterable[bytes]


@dataclass(frozen=True, kw_only=True)
class BlobStat:
    """A stored blob. `sha256` (hex) is known after `put`; `stat` and `list` know it where the store keeps it."""

    key: str
    size: int
    sha256: str | None = None
    modified: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class ObjectStat:
    """An object in a bucket; the fields are those that `pipelines.media.sources` asks its reader for."""

    key: str
    size: int
    etag: str
    version_id: str | None = None
    last_modified: datetime | None = None


class BlobStore(Protocol):
    """A flat map of keys to bytes. Safe for threads. Raises `BlobStoreUnavailable` where the store does not answer."""

    def put(self, key: str, data: Data, *, if_absent: bool = False) -> BlobStat:
        """Store all of `data` or nothing. With `if_absent` a blob that exists already is kept and its stat returned.

        Raises `InvalidParameter` for an unsafe key, and whatever iterating `data` raises.
        """

    def get(self, key: str) -> bytes:
        """The whole blob. Raises `MediaNotFound`."""

    def stream(self, key: str) -> Iterator[bytes]:
        """The blob in pieces of about a megabyte. Raises `MediaNotFound` at once, not at the first piece."""

    def stat(self, key: str) -> BlobStat:
        """Size and time. Raises `MediaNotFound`."""

    def delete(self, key: str) -> None:
        """Remove the blob; one that does not exist is fine."""

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[BlobStat]:
        """Blobs under a prefix in the byte order of their keys, behind `start_after`; a page in memory at a time."""

    def presign_get(self, key: str, *, expires: float) -> str | None:
        """A URL that reads the blob for `expires` seconds; None where the store has none."""

    def presign_put(self, key: str, *, expires: float) -> str | None:
        """A URL that takes one PUT of the blob for `expires` seconds; None where the store has none."""


class ObjectReader(Protocol):
    """Reading anybody's buckets."""

    def head(self, bucket: str, key: str) -> ObjectStat:
        """The object's present version. Raises `MediaNotFound`, `SourceForbidden`, `SourceUnavailable`."""

    def read(
        self, bucket: str, key: str, *, version_id: str | None = None, if_match: str | None = None
    ) -> Iterator[bytes]:
        """The object's bytes. Raises, at once or on the way, what `head` raises; `MediaChanged` for another ETag."""

    def list(self, bucket: str, prefix: str, *, start_after: str = "") -> Iterator[ObjectStat]:
        """Objects under a prefix in the byte order of their keys; a page of 1,000 in memory at a time."""


def check_key(key: str) -> str:
    """The key, when every store can hold it. Raises `InvalidParameter`."""
    if not key or len(key.encode()) > MAX_KEY_BYTES:
        raise InvalidParameter(f"A key has 1 to {MAX_KEY_BYTES} bytes.", param="key")
    if re.search(r"[\x00-\x1f\x7f\\]", key):
        raise InvalidParameter("A key must not hold control characters or backslashes.", param="key")
    if any(part in {"", ".", ".."} for part in key.split("/")):
        raise InvalidParameter("A key must not hold empty parts, `.` or `..`.", param="key")
    return key


class Hashed:
    """Iterate data in pieces; afterwards `size` and `sha256` describe all that went through."""

    def __init__(self, data: Data) -> None:
        self._data = data
        self._digest = hashlib.sha256()
        self.size = 0

    @property
    def sha256(self) -> str:
        """Hex digest of the pieces so far."""
        return self._digest.hexdigest()

    def __iter__(self) -> Iterator[bytes]:
        for piece in pieces(self._data):
            self._digest.update(piece)
            self.size += len(piece)
            yield piece


def pieces(data: Data) -> Iterator[bytes]:
    """Data of any accepted form as pieces."""
    if isinstance(data, bytes):
        if data:
            yield data
    elif isinstance(data, Path):
        with data.open("rb") as file:
            while piece := file.read(CHUNK_BYTES):
                yield piece
    else:
        yield from data
