"""Blobs in an S3 bucket (AWS, MinIO, rclone), and a reader of anybody's buckets.

Path-style addresses, and checksums only where an operation requires them: other servers than AWS know neither virtual
hosts nor the newer checksum headers.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import boto3
import botocore.exceptions
from botocore.config import Config
from botocore.handlers import add_expect_header

from pipelines.blobs.base import CHUNK_BYTES, BlobStat, Data, Hashed, ObjectStat, check_key
from pipelines.jobs.errors import (
    BatchsightError,
    BlobStoreUnavailable,
    ConfigurationError,
    ExportForbidden,
    MediaChanged,
    MediaNotFound,
    ServiceUnavailable,
    SourceForbidden,
    SourceUnavailable,
)

S3Client = Any  # botocore makes its clients from data at run time; the stubs for them lag behind its releases

PART_BYTES = 16 * 1024 * 1024  # S3 takes at most 10,000 parts: 160 GB
_SHA256 = "sha256"  # name of our metadata entry

_FAILURES = (botocore.exceptions.BotoCoreError, botocore.exceptions.HTTPClientError, OSError)


@dataclass(frozen=True, kw_only=True)
class S3Options:
    """How a server is reached. Empty keys mean boto3's own chain (environment, instance role). Times in seconds."""

    endpoint_url: str | None = None
    region: str = "us-east-1"
    access_key_id: str | None = None
    secret_access_key: str | None = None
    connect_timeout: float = 5
    read_timeout: float = 30
    attempts: int = 3
    connections: int = 32

    def client(self, *, endpoint_url: str | None = None) -> S3Client:
        """A client; it is safe for threads. Make one in each process, after forking."""
        client: S3Client = boto3.session.Session().client(
            "s3",
            endpoint_url=endpoint_url or self.endpoint_url,
            region_name=self.region,
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret_access_key,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path"},
                response_checksum_validation="when_required",
                request_checksum_calculation="when_required",
                connect_timeout=self.connect_timeout,
                read_timeout=self.read_timeout,
                retries={"total_max_attempts": self.attempts, "mode": "standard"},
                max_pool_connections=self.connections,
                tcp_keepalive=True,
            ),
        )
        # Without "Expect: 100-continue": botocore reads on for ever, at full speed, where a server breaks off behind
        # the first line of its answer to that, and no time-out sees it.
        client.meta.events.unregister("before-call.s3", add_expect_header)
        return client


class S3BlobStore:
    """Meets `BlobStore` in `bucket`, below `prefix`. `public_endpoint_url` is the one that presigned URLs name.

    `refused`: the bucket is somebody else's, and a `put` that it refuses ends in `ExportForbidden` with these words.
    """

    def __init__(
        self,
        options: S3Options,
        *,
        bucket: str,
        prefix: str = "",
        public_endpoint_url: str | None = None,
        refused: str = "",
    ) -> None:
        self._refused = refused
        self._client = options.client()
        self._public = options.client(endpoint_url=public_endpoint_url) if public_endpoint_url else self._client
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""

    def _name(self, key: str) -> str:
        return self._prefix + check_key(key)

    def ensure_bucket(self) -> None:
        """Create the bucket unless it is there: for the embedded stack and tests."""
        with _mapped(BlobStoreUnavailable("The blob store does not answer.")):
            try:
                self._client.head_bucket(Bucket=self._bucket)
            except botocore.exceptions.ClientError as error:
                if _status(error) != 404:
                    raise
                self._client.create_bucket(Bucket=self._bucket)

    def put(self, key: str, data: Data, *, if_absent: bool = False) -> BlobStat:
        """See `BlobStore.put`. Data of more than one part go up in parts, a part in memory at a time."""
        name = self._name(key)
        if if_absent:
            try:
                return self.stat(key)
            except MediaNotFound:
                pass  # the usual case: it is stored below
        hashed = Hashed(data)
        parts = _parts(hashed)
        first = next(parts, b"")
        with _mapped(BlobStoreUnavailable("The blob store does not answer."), refused=self._refused):
            if len(first) < PART_BYTES:
                self._client.put_object(Bucket=self._bucket, Key=name, Body=first, Metadata={_SHA256: hashed.sha256})
            else:
                self._put_parts(name, first, parts)
        return BlobStat(key=key, size=hashed.size, sha256=hashed.sha256)

    def _put_parts(self, name: str, first: bytes, rest: Iterator[bytes]) -> None:
        upload = self._client.create_multipart_upload(Bucket=self._bucket, Key=name)["UploadId"]
        done: list[Any] = []
        try:
            for number, part in enumerate(_chain(first, rest), start=1):
                answer = self._client.upload_part(
                    Bucket=self._bucket, Key=name, UploadId=upload, PartNumber=number, Body=part
                )
                done.append({"PartNumber": number, "ETag": answer["ETag"]})
            self._client.complete_multipart_upload(
                Bucket=self._bucket, Key=name, UploadId=upload, MultipartUpload={"Parts": done}
            )
        except BaseException:
            self._client.abort_multipart_upload(Bucket=self._bucket, Key=name, UploadId=upload)
            raise

    def get(self, key: str) -> bytes:
        """See `BlobStore.get`."""
        return b"".join(self.stream(key))

    def stream(self, key: str) -> Iterator[bytes]:
        """See `BlobStore.stream`."""
        name = self._name(key)
        with _mapped(BlobStoreUnavailable("The blob store does not answer.")):
            answer = self._client.get_object(Bucket=self._bucket, Key=name)
        return _body(answer, BlobStoreUnavailable("The blob store broke off."))

    def stat(self, key: str) -> BlobStat:
        """See `BlobStore.stat`."""
        name = self._name(key)
        with _mapped(BlobStoreUnavailable("The blob store does not answer.")):
            answer = self._client.head_object(Bucket=self._bucket, Key=name)
        return BlobStat(
            key=key,
            size=answer["ContentLength"],
            sha256=answer.get("Metadata", {}).get(_SHA256),
            modified=answer["LastModified"],
        )

    def delete(self, key: str) -> None:
        """See `BlobStore.delete`."""
        name = self._name(key)
        try:
            with _mapped(BlobStoreUnavailable("The blob store does not answer.")):
                self._client.delete_object(Bucket=self._bucket, Key=name)
        except MediaNotFound:
            return  # AWS answers 204 for a key that is not there, others 404

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[BlobStat]:
        """See `BlobStore.list`."""
        behind = self._prefix + start_after if start_after else ""
        with _mapped(BlobStoreUnavailable("The blob store does not answer.")):
            for entry in _pages(self._client, self._bucket, self._prefix + prefix, behind):
                yield BlobStat(
                    key=entry["Key"][len(self._prefix) :], size=entry["Size"], modified=entry["LastModified"]
                )

    def presign_get(self, key: str, *, expires: float) -> str | None:
        """See `BlobStore.presign_get`."""
        parameters = {"Bucket": self._bucket, "Key": self._name(key)}
        return str(self._public.generate_presigned_url("get_object", Params=parameters, ExpiresIn=int(expires)))

    def presign_put(self, key: str, *, expires: float) -> str | None:
        """See `BlobStore.presign_put`."""
        parameters = {"Bucket": self._bucket, "Key": self._name(key)}
        return str(self._public.generate_presigned_url("put_object", Params=parameters, ExpiresIn=int(expires)))


class S3ObjectReader:
    """Meets `ObjectReader`: reads whatever the credentials may read; who may ask for it is decided before."""

    def __init__(self, options: S3Options) -> None:
        self._client = options.client()

    def head(self, bucket: str, key: str) -> ObjectStat:
        """See `ObjectReader.head`."""
        with _mapped(SourceUnavailable("The object store does not answer.")):
            answer = self._client.head_object(Bucket=bucket, Key=key)
        return ObjectStat(
            key=key,
            size=answer["ContentLength"],
            etag=answer["ETag"].strip('"'),
            version_id=_version(answer.get("VersionId")),
            last_modified=answer["LastModified"],
        )

    def read(
        self, bucket: str, key: str, *, version_id: str | None = None, if_match: str | None = None
    ) -> Iterator[bytes]:
        """See `ObjectReader.read`."""
        request: dict[str, Any] = {"Bucket": bucket, "Key": key}
        if version_id:
            request["VersionId"] = version_id
        if if_match:
            request["IfMatch"] = f'"{if_match}"'
        with _mapped(SourceUnavailable("The object store does not answer.")):
            answer = self._client.get_object(**request)
            # Not every server heeds If-Match.
            if if_match and answer["ETag"].strip('"') != if_match:
                answer["Body"].close()
                raise MediaChanged("The object was replaced after the job was planned; submit it again.")
        return _body(answer, SourceUnavailable("The object store broke off."))

    def list(self, bucket: str, prefix: str, *, start_after: str = "") -> Iterator[ObjectStat]:
        """See `ObjectReader.list`."""
        with _mapped(SourceUnavailable("The object store does not answer.")):
            for entry in _pages(self._client, bucket, prefix, start_after):
                yield ObjectStat(
                    key=entry["Key"],
                    size=entry["Size"],
                    etag=entry["ETag"].strip('"'),
                    last_modified=entry["LastModified"],
                )


def _version(value: str | None) -> str | None:
    return None if value in {None, "", "null"} else value


def _pages(client: S3Client, bucket: str, prefix: str, start_after: str) -> Iterator[Any]:
    """Entries of a listing; some servers ignore StartAfter, so it is checked here as well."""
    behind = start_after.encode()
    paginator = client.get_paginator("list_objects_v2")
    for page in paginator.paginate(Bucket=bucket, Prefix=prefix, StartAfter=start_after):
        for entry in page.get("Contents", []):
            if entry["Key"].encode() > behind:
                yield entry


def _parts(pieces: Hashed) -> Iterator[bytes]:
    """Pieces gathered to parts of exactly `PART_BYTES`; the last is shorter."""
    buffer = io.BytesIO()
    for piece in pieces:
        view = memoryview(piece)
        while view.nbytes:
            taken = view[: PART_BYTES - buffer.tell()]
            buffer.write(taken)
            view = view[taken.nbytes :]
            if buffer.tell() == PART_BYTES:
                yield buffer.getvalue()
                buffer = io.BytesIO()
    if buffer.tell():
        yield buffer.getvalue()


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def _body(answer: Any, failure: BatchsightError) -> Iterator[bytes]:
    """The bytes of an answer, as many as it promised."""
    body, expected, seen = answer["Body"], answer["ContentLength"], 0
    try:
        with _mapped(failure):
            for piece in body.iter_chunks(CHUNK_BYTES):
                seen += len(piece)
                yield piece
        if seen != expected:
            raise failure
    finally:
        body.close()


@contextmanager
def _mapped(failure: BatchsightError, *, refused: str = "") -> Iterator[None]:
    """The one boundary for botocore's errors; `failure` stands for a server that does not answer as it should."""
    try:
        yield
    except botocore.exceptions.ClientError as error:
        if refused and _status(error) in {401, 403, 404}:
            raise ExportForbidden(refused) from error
        raise _translate(error, failure) from error
    except botocore.exceptions.ParamValidationError as error:
        raise MediaNotFound("The object store knows no object of this name.") from error
    except botocore.exceptions.NoCredentialsError as error:
        raise ConfigurationError("No credentials for the object store are set.") from error
    except _FAILURES as error:
        raise failure from error


def _status(error: botocore.exceptions.ClientError) -> int:
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return int(status)


def _translate(error: botocore.exceptions.ClientError, failure: BatchsightError) -> BatchsightError:
    status = _status(error)
    code = str(error.response.get("Error", {}).get("Code", ""))
    if status == 404 or code in {"NoSuchKey", "NoSuchBucket", "NoSuchVersion", "404"}:
        return MediaNotFound("There is no such object; check the bucket and the key.")
    if status == 412 or code == "PreconditionFailed":
        return MediaChanged("The object was replaced after the job was planned; submit it again.")
    if status in {401, 403} and not isinstance(failure, ServiceUnavailable):
        return SourceForbidden("The object store refuses this object; its keys need leave to read it.")
    if status == 400:
        return MediaNotFound("The object store knows no object of this name.")
    return failure
