"""From a medium's reference to a file on this disk, under the tenant's rules and at the pinned version.

A listing pins what it lists. Everything else (inline media, manifests) is pinned at its first fetch: a HEAD for each of
a hundred thousand manifest lines would cost minutes before the first item could run, and buys nothing that the first
fetch does not. From then on every page and every attempt reads that version, or fails with `media_changed`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipelines.jobs.errors import MediaNotFound
from pipelines.jobs.models import JobSpec, MediaRef
from pipelines.media.sniff import MediaType
from pipelines.media.sources import Fetcher, HttpsSource, S3Source, Source, UploadSource
from pipelines.steps.access import AccessRules, HttpsAddress, S3Address, UploadAddress, allow, parse_url


def pinned(version_id: str | None, etag: str | None) -> str | None:
    """The stored form of a pinned version: which of the two it is, and its value."""
    if version_id:
        return f"version:{version_id}"
    return f"etag:{etag}" if etag else None


class StoredUpload(Protocol):
    """An uploaded file (`pipelines.store.files`)."""

    @property
    def blob_key(self) -> str:
        """Where its bytes lie."""

    @property
    def filename(self) -> str:
        """What the client called it."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def sha256(self) -> str:
        """Of its bytes (hex)."""


FindUpload = Callable[[JobSpec, UploadAddress], StoredUpload | None]


@dataclass(frozen=True, kw_only=True)
class OpenedSource:
    """A file that stays on disk while its context is open."""

    path: Path
    sha256: str
    media_type: MediaType
    version: str | None


@dataclass(frozen=True, kw_only=True)
class SourceOpener:
    """`open(spec, media)`: the one way from a reference to bytes."""

    fetcher: Fetcher
    find_upload: FindUpload
    rules: Callable[[JobSpec], AccessRules]

    @contextmanager
    def open(self, spec: JobSpec, media: MediaRef) -> Iterator[OpenedSource]:
        """Fetch the medium. Raises a `MediaError`, `InvalidParameter` or `ScratchFull`."""
        address = parse_url(media.url)
        allow(address, self.rules(spec))
        source = self.fetcher.pin(self._source(spec, address, media.version))
        with self.fetcher.fetch(source) as fetched:
            yield OpenedSource(
                path=fetched.path,
                sha256=fetched.sha256,
                media_type=fetched.media_type,
                version=media.version or _version(source),
            )

    def _source(self, spec: JobSpec, address: S3Address | UploadAddress | HttpsAddress, version: str | None) -> Source:
        kind, _, value = (version or "").partition(":")
        match address:
            case S3Address(bucket=bucket, key=key):
                return S3Source(
                    bucket=bucket,
                    key=key,
                    version_id=value if kind == "version" else None,
                    etag=value if kind == "etag" else None,
                )
            case HttpsAddress(url=url):
                return HttpsSource(url=url, etag=value if kind == "etag" else None)
            case UploadAddress():
                upload = self.find_upload(spec, address)
                if upload is None:
                    raise MediaNotFound("the uploaded file is gone; upload it again")
                return UploadSource(key=upload.blob_key, sha256=upload.sha256)


def _version(source: Source) -> str | None:
    match source:
        case S3Source(version_id=version_id, etag=etag):
            return pinned(version_id, etag)
        case HttpsSource(etag=etag):
            return pinned(None, etag)
        case UploadSource(sha256=sha256):
            return f"sha256:{sha256}" if sha256 else None
