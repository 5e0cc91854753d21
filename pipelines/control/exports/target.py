"""Where an export goes: the one place that decides whether a tenant may write there.

Reading and writing are different rights. What a tenant may read (`allowed_buckets`) is the media of its jobs, often
shared, and never a place to write. Writing has a list of its own (`export_buckets`, empty unless the operator fills
it); an entry is a bucket, or `bucket/prefix`, where the prefix ends at a `/` (`out/acme` does not open
`out/acme-two`). Without an address an export goes to the installation's own store, below the tenant's own folder; by an
address that store is never written to, whatever the list says, for there lie everybody's uploads and packs.

An export writes in a folder of its own (`<prefix>/<job>/<export>/`), so it replaces nothing that was there.
Checked when it is asked for, and again at each turn, for the list may have changed since.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from pipelines.jobs.errors import ExportForbidden, InvalidParameter
from pipelines.media.globs import parse_s3

_LONGEST_PREFIX = 512  # of the 1,024 bytes of a key; ours takes less than the other half
OWN = "exports"

REFUSED = (
    "the target's bucket is missing, or refuses to be written to; its policy must let this installation put objects"
)


@dataclass(frozen=True, kw_only=True)
class ExportRules:
    """What this installation allows: `buckets` for tenants without a list of their own; `blob_url` is its own store."""

    buckets: tuple[str, ...]
    blob_url: str


@dataclass(frozen=True, kw_only=True)
class S3Target:
    """A place in a bucket: `prefix` is empty or ends in `/`."""

    bucket: str
    prefix: str


def target_of(url: str, *, tenant_buckets: Sequence[str] | None, rules: ExportRules) -> S3Target:
    """The place behind `s3://bucket/prefix/`. Raises `InvalidParameter`, or `ExportForbidden`."""
    pattern = parse_s3(url)
    if pattern.is_glob:
        raise InvalidParameter("an export goes to one prefix: s3://bucket/prefix/, without a glob", param="url")
    prefix = pattern.pattern.strip("/")
    if "//" in prefix or "\\" in prefix or len(prefix.encode()) > _LONGEST_PREFIX:
        raise InvalidParameter(
            f"the prefix must have at most {_LONGEST_PREFIX} bytes, no empty part and no backslash", param="url"
        )
    target = S3Target(bucket=pattern.bucket, prefix=f"{prefix}/" if prefix else "")
    allowed = rules.buckets if tenant_buckets is None else tenant_buckets
    if _own_store(target, rules.blob_url) or not any(_opens(entry, target) for entry in allowed):
        raise ExportForbidden(
            f"s3://{target.bucket}/{target.prefix} is not among the places this tenant may write to; ask the operator "
            "to allow it, or leave the address out",
            param="url",
        )
    return target


def folder_of(tenant_id: uuid.UUID, job_id: uuid.UUID, export_id: uuid.UUID, *, own: bool) -> str:
    """The folder of one export, below the target's prefix or in the installation's own store."""
    return f"{OWN}/{tenant_id}/{job_id}/{export_id}/" if own else f"{job_id}/{export_id}/"


def _opens(entry: str, target: S3Target) -> bool:
    bucket, _, prefix = entry.partition("/")
    prefix = prefix.strip("/")
    return bucket == target.bucket and (not prefix or target.prefix.startswith(f"{prefix}/"))


def _own_store(target: S3Target, blob_url: str) -> bool:
    """Inside of the blob store, or around it."""
    parts = urlsplit(blob_url)
    if parts.scheme != "s3" or parts.netloc != target.bucket:
        return False
    own = parts.path.strip("/")
    own = f"{own}/" if own else ""
    return target.prefix.startswith(own) or own.startswith(target.prefix)
