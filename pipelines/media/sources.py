"""Where media come from, and how they get to this machine's disk: streamed, counted, hashed, sniffed, once.

A source is pinned when it is planned (object version or ETag) and, after the first fetch, by the hash of its bytes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, Self

import httpx2

from pipelines.jobs.errors import (
    EmptyDocument,
    MediaChanged,
    MediaNotFound,
    MediaTooLarge,
    SourceDisabled,
    SourceForbidden,
    SourceUnavailable,
    UnsupportedMedia,
)
from pipelines.media.cache import CachedFile, DiskCache, Pin
from pipelines.media.globs import check_object_key
from pipelines.media.limits import MediaLimits
from pipelines.media.pages import sniff_file
from pipelines.media.sniff import SNIFF_BYTES, MediaType, sniff


class ObjectStat(Protocol):
    """What a bucket says of an object."""

    @property
    def key(self) -> str:
        """The full key."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def etag(self) -> str:
        """Without quotes."""

    @property
    def version_id(self) -> str | None:
        """None in a bucket without versions."""


class ObjectReader(Protocol):
    """Reading buckets; met by `pipelines.blobs.s3`, whose `base` says what it raises."""

    def head(self, bucket: str, key: str) -> ObjectStat:
        """The present version."""

    def read(
        self, bucket: str, key: str, *, version_id: str | None = None, if_match: str | None = None
    ) -> Iterator[bytes]:
        """The bytes of that version."""


class UploadReader(Protocol):
    """Reading uploads; met by every blob store."""

    def stream(self, key: str) -> Iterator[bytes]:
        """The bytes."""


@dataclass(frozen=True, kw_only=True)
class S3Source:
    """An object; pinned by version or, in a bucket without versions, by ETag."""

    bucket: str
    key: str
    version_id: str | None = None
    etag: str | None = None
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class UploadSource:
    """A file that a client uploaded; uploads never change."""

    key: str
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class HttpsSource:
    """An address on the internet."""

    url: str
    etag: str | None = None
    sha256: str | None = None


Source = S3Source | UploadSource | HttpsSource


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A file on this disk, kept until `close` (or the end of the object). `version`: version id or ETag, if any."""

    path: Path
    sha256: str
    size: int
    media_type: MediaType
    version: str | None
    pin: Pin = field(repr=False, compare=False)

    def close(self) -> None:
        """Let the cache evict the file. Repeatable."""
        self.pin.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Fetcher:
    """Fetches each source once into the cache. Safe for threads. A reader that is None switches its source off."""

    def __init__(
        self,
        cache: DiskCache,
        limits: MediaLimits | None = None,
        *,
        objects: ObjectReader | None = None,
        uploads: UploadReader | None = None,
        https: httpx2.Client | None = None,
    ) -> None:
        self._cache = cache
        self._limits = limits or MediaLimits()
        self._objects = objects
        self._uploads = uploads
        self._https = https

    def pin(self, source: Source) -> Source:
        """The source with its present version filled in; unchanged where it is pinned or cannot be.

        Raises `MediaNotFound`, `SourceForbidden`, `SourceUnavailable`, `SourceDisabled`.
        """
        if not isinstance(source, S3Source) or source.version_id or source.etag:
            return source
        stat = self._bucket_reader().head(source.bucket, check_object_key(source.key))
        return replace(source, version_id=stat.version_id, etag=stat.etag)

    def fetch(self, source: Source) -> Fetched:
        """The file of a source. Use it in a `with` statement.

        Raises `MediaNotFound`, `MediaChanged`, `MediaTooLarge`, `UnsupportedMedia`, `EmptyDocument`, `SourceForbidden`,
        `SourceDisabled`, `SourceUnavailable`, `ScratchFull`.
        """
        identity = _identity(source)
        known = source.sha256 or (self._cache.content_of(identity) if identity else None)
        found = self._cache.find(known) if known else None
        if found is None:
            with self._cache.exclusive(identity or repr(source)):
                # Another process may have fetched it while this one waited.
                known = source.sha256 or (self._cache.content_of(identity) if identity else None)
                found = self._cache.find(known) if known else None
                if found is None:
                    found = self._cache.store(self._guarded(self._pieces(source)), name=identity)
        if source.sha256 is not None and found.sha256 != source.sha256:
            found.pin.close()
            raise MediaChanged("The medium is not the one that was planned; submit it again.")
        return _fetched(found, source)

    def _pieces(self, source: Source) -> Iterator[bytes]:
        if isinstance(source, S3Source):
            version = source.version_id
            return self._bucket_reader().read(
                source.bucket,
                check_object_key(source.key),
                version_id=version,
                if_match=None if version else source.etag,
            )
        if isinstance(source, UploadSource):
            if self._uploads is None:
                raise SourceDisabled("Uploads are switched off on this installation.")
            return self._uploads.stream(source.key)
        if self._https is None:
            raise SourceDisabled("Fetching from https addresses is switched off on this installation.")
        return _download(self._https, source)

    def _bucket_reader(self) -> ObjectReader:
        if self._objects is None:
            raise SourceDisabled("Buckets are switched off on this installation.")
        return self._objects

    def _guarded(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """The pieces, as long as their type, size and speed are acceptable; the first ones decide on the type."""
        started, size, head, limit = time.monotonic(), 0, b"", self._limits.video_bytes
        kind: MediaType | None = None
        for piece in pieces:
            size += len(piece)
            if kind is None:
                head += piece
                if len(head) >= SNIFF_BYTES:
                    kind, limit = self._accept(head)
            if size > limit:
                raise MediaTooLarge(f"The file has more than the accepted {limit:,} bytes.")
            if time.monotonic() - started > self._limits.fetch_timeout(size):
                raise SourceUnavailable("The source answers too slowly.")
            yield piece
        if size == 0:
            raise EmptyDocument("The file is empty.")
        if kind is None and size > self._accept(head)[1]:
            raise MediaTooLarge(f"The file has more than the accepted {limit:,} bytes.")

    def _accept(self, head: bytes) -> tuple[MediaType, int]:
        kind = sniff(head[:SNIFF_BYTES])
        if kind is None:
            raise UnsupportedMedia("The file is none of JPEG, PNG, WebP, GIF, TIFF, PDF, MP4, MOV, MKV, WebM, AVI.")
        if kind.is_image:
            return kind, self._limits.image_bytes
        return kind, self._limits.document_bytes if kind.is_document else self._limits.video_bytes


def _fetched(found: CachedFile, source: Source) -> Fetched:
    version = None
    if isinstance(source, S3Source):
        version = source.version_id or source.etag
    elif isinstance(source, HttpsSource):
        version = source.etag
    return Fetched(
        path=found.path,
        sha256=found.sha256,
        size=found.size,
        media_type=sniff_file(found.path),
        version=version,
        pin=found.pin,
    )


def _identity(source: Source) -> str | None:
    """A name under which the same bytes are found again; None where nothing says that they are the same."""
    if isinstance(source, UploadSource):
        return f"upload\0{source.key}"
    if isinstance(source, S3Source) and (source.version_id or source.etag):
        return f"s3\0{source.bucket}\0{source.key}\0{source.version_id}\0{source.etag}"
    if isinstance(source, HttpsSource) and source.etag:
        return f"https\0{source.url}\0{source.etag}"
    return None


def _download(client: httpx2.Client, source: HttpsSource) -> Iterator[bytes]:
    try:
        with client.stream("GET", source.url) as response:
            _check_answer(response, source)
            yield from response.iter_raw(1024 * 1024)
    except httpx2.TooManyRedirects as error:
        raise SourceForbidden("The address redirects too often; name the final one.") from error
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
        raise SourceForbidden("The address is not an https URL.") from error
    except httpx2.HTTPError as error:
        raise SourceUnavailable("The server of the address timed out or broke off.") from error


def _check_answer(response: httpx2.Response, source: HttpsSource) -> None:
    status = response.status_code
    if status in {401, 403, 407, 451}:
        raise SourceForbidden(f"The server of the address refuses it (status {status}).")
    if status in {408, 425, 429} or status >= 500:
        raise SourceUnavailable(f"The server of the address answers with status {status}.")
    if status != 200:
        raise MediaNotFound(f"There is no medium at the address (status {status}).")
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMedia("The server of the address sends compressed bytes that were not asked for.")
    if source.etag is not None and response.headers.get("etag", "").removeprefix("W/").strip('"') != source.etag:
        raise MediaChanged("The medium at the address was replaced after the job was planned; submit it again.")
