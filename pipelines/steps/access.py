"""Which sources a job may read: the one place that turns a media URL into something to fetch, or refuses it.

Checked when a job is submitted (so that the caller hears at once), when a source is planned (a manifest is read only
then) and when a medium is fetched (the tenant's list may have changed since).
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from pipelines.jobs.errors import InvalidParameter, SourceDisabled, SourceForbidden
from pipelines.media.globs import check_object_key

_BUCKET = re.compile(r"\A[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]\Z")
_LONGEST_URL = 8_192


@dataclass(frozen=True, kw_only=True)
class S3Address:
    """An object, or a prefix, in a bucket."""

    bucket: str
    key: str


@dataclass(frozen=True, kw_only=True)
class UploadAddress:
    """A file of the tenant's, uploaded before."""

    file_id: uuid.UUID


@dataclass(frozen=True, kw_only=True)
class HttpsAddress:
    """A URL outside."""

    url: str


Address = S3Address | UploadAddress | HttpsAddress


@dataclass(frozen=True, kw_only=True)
class AccessRules:
    """What this installation and this tenant allow. `buckets` holds `bucket` or `bucket/prefix` entries."""

    buckets: tuple[str, ...]
    https: bool


def parse_url(url: str) -> Address:
    """The address behind `s3://bucket/key`, `https://…`, or an uploaded file's id. Raises `InvalidParameter`.

    A file's id is `file-<hex>` as clients know it, or `upload:<uuid>` as jobs store it.
    """
    if len(url) > _LONGEST_URL:
        raise InvalidParameter(f"the URL is longer than {_LONGEST_URL} characters", param="url")
    if url.startswith(("upload:", "file-")):
        try:
            return UploadAddress(file_id=uuid.UUID(url.removeprefix("upload:").removeprefix("file-")))
        except ValueError as error:
            raise InvalidParameter(f"{url!r} does not name an uploaded file", param="url") from error
    if url.startswith("s3://"):
        bucket, _, key = url.removeprefix("s3://").partition("/")
        if not _BUCKET.match(bucket):
            raise InvalidParameter(f"{bucket!r} is no bucket name; write s3://bucket/key", param="url")
        return S3Address(bucket=bucket, key=check_object_key(key))
    if urlsplit(url).scheme in {"https", "http"}:
        return HttpsAddress(url=url)
    raise InvalidParameter(
        f"{url[:80]!r} is no source; write s3://bucket/key, https://…, or the id of an uploaded file", param="url"
    )


def allow(address: Address, rules: AccessRules) -> None:
    """Raise `SourceForbidden` or `SourceDisabled` unless the rules allow this address."""
    match address:
        case S3Address(bucket=bucket, key=key):
            if not bucket_allowed(bucket, key, rules.buckets):
                raise SourceForbidden(
                    f"s3://{bucket} is not among the buckets this tenant may read; ask the operator to allow it"
                )
        case HttpsAddress(url=url):
            if not rules.https:
                raise SourceDisabled("https sources are switched off here; upload the file or use S3")
            if urlsplit(url).scheme != "https":
                raise SourceForbidden("only https addresses are fetched; write https://…, or upload the file")
        case UploadAddress():
            pass  # looked up under the tenant's id, which is the check


def bucket_allowed(bucket: str, key: str, allowed: Sequence[str]) -> bool:
    """True where an entry is the bucket, or `bucket/prefix` with a prefix of the key."""
    for entry in allowed:
        name, _, prefix = entry.partition("/")
        if name == bucket and key.startswith(prefix):
            return True
    return False
