"""PLAN's tools from the parts of a process: how uploads are found and manifests opened, in workers and in dry runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pipelines.blobs.base import BlobStore, ObjectReader
from pipelines.jobs.errors import ConfigurationError, MediaNotFound
from pipelines.jobs.models import JobSpec
from pipelines.steps.access import AccessRules, S3Address, UploadAddress, allow, parse_url
from pipelines.steps.complete import Transactions
from pipelines.steps.plan import OpenManifest
from pipelines.steps.sources import FindUpload, StoredUpload
from pipelines.store import files

Rules = Callable[[JobSpec], AccessRules]


def uploads_of(transactions: Transactions) -> FindUpload:
    """Finds a tenant's uploaded file, each time in a transaction of its own."""

    def find(spec: JobSpec, address: UploadAddress) -> StoredUpload | None:
        with transactions.begin() as conn:
            return files.get(conn, spec.tenant_id, address.file_id)

    return find


def manifests_of(blobs: BlobStore, objects: ObjectReader, find_upload: FindUpload, rules: Rules) -> OpenManifest:
    """Opens a manifest wherever it lies: in the request, uploaded, in S3; checked again, for the list may change."""

    @contextmanager
    def opened(spec: JobSpec, source: Mapping[str, Any]) -> Iterator[Iterable[bytes]]:
        if "inline" in source:
            yield [str(source["inline"]).encode()]
            return
        address = parse_url(str(source.get("url") or f"upload:{source['file_id']}"))
        allow(address, rules(spec))
        if isinstance(address, UploadAddress):
            upload = find_upload(spec, address)
            if upload is None:
                raise MediaNotFound("the manifest's file is gone; upload it again")
            yield blobs.stream(upload.blob_key)
        elif isinstance(address, S3Address):
            yield objects.read(address.bucket, address.key)
        else:
            raise ConfigurationError("a manifest must lie in S3 or be uploaded")

    return opened
