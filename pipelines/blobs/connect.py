"""From an address, or an installation's settings, to a store: `s3://bucket/prefix` or `file:///folder`."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipelines.blobs.base import BlobStore
from pipelines.blobs.local import LocalBlobStore
from pipelines.blobs.s3 import S3BlobStore, S3Options
from pipelines.jobs.errors import ConfigurationError
from pipelines.settings import Settings


def s3_options(settings: Settings) -> S3Options:
    """How this installation reaches S3."""
    secret = settings.s3_secret_access_key
    return S3Options(
        endpoint_url=settings.s3_endpoint_url,
        region=settings.s3_region,
        access_key_id=settings.s3_access_key_id,
        secret_access_key=secret.get_secret_value() if secret else None,
    )


def blob_store(settings: Settings) -> BlobStore:
    """The blob store of this installation. Raises `ConfigurationError`."""
    return connect(settings.blob_url, s3=s3_options(settings), public_endpoint_url=settings.s3_public_endpoint_url)


def connect(url: str, *, s3: S3Options, public_endpoint_url: str | None = None) -> BlobStore:
    """The blob store at `url`. Raises `ConfigurationError` for any other kind of address."""
    parts = urlsplit(url)
    if parts.scheme == "s3" and parts.netloc:
        return S3BlobStore(
            s3, bucket=parts.netloc, prefix=parts.path.strip("/"), public_endpoint_url=public_endpoint_url
        )
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"):
        return LocalBlobStore(Path(unquote(parts.path)))
    raise ConfigurationError(f"BATCHSIGHT_BLOB_URL is {url!r}; use s3://bucket/prefix or file:///folder")
