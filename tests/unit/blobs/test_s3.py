"""The S3 store meets the contract against a real server, and reads anybody's buckets."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace

import httpx2
import pytest

from pipelines.blobs.s3 import S3BlobStore, S3ObjectReader, S3Options
from pipelines.jobs.errors import (
    BlobStoreUnavailable,
    MediaChanged,
    MediaNotFound,
    SourceForbidden,
    SourceUnavailable,
)
from tests.contracts.blob_store_contract import BlobStoreContract

_numbers = itertools.count()


@pytest.fixture
def bucket(s3: S3Options) -> str:
    name = f"bucket-{next(_numbers)}"
    S3BlobStore(s3, bucket=name).ensure_bucket()
    return name


class TestS3BlobStore(BlobStoreContract):
    @pytest.fixture
    def store(self, s3: S3Options, bucket: str) -> S3BlobStore:
        return S3BlobStore(s3, bucket=bucket, prefix="some/prefix")


def test_a_bucket_is_made_once(s3: S3Options, bucket: str) -> None:
    S3BlobStore(s3, bucket=bucket).ensure_bucket()


def test_prefixes_keep_stores_apart(s3: S3Options, bucket: str) -> None:
    one, two = S3BlobStore(s3, bucket=bucket, prefix="one"), S3BlobStore(s3, bucket=bucket, prefix="two/")
    one.put("k", b"1")
    two.put("k", b"2")
    assert (one.get("k"), two.get("k")) == (b"1", b"2")
    assert [stat.key for stat in one.list("")] == ["k"]
    assert [stat.key for stat in S3BlobStore(s3, bucket=bucket).list("")] == ["one/k", "two/k"]


def test_presigned_urls_work_without_credentials(s3: S3Options, bucket: str) -> None:
    store = S3BlobStore(s3, bucket=bucket)
    put, get = store.presign_put("k", expires=60), store.presign_get("k", expires=60)
    assert put is not None
    assert get is not None
    assert httpx2.put(put, content=b"direct").status_code == 200
    assert httpx2.get(get).content == b"direct"
    assert store.get("k") == b"direct"


def test_presigned_urls_name_the_public_endpoint(s3: S3Options, bucket: str) -> None:
    store = S3BlobStore(s3, bucket=bucket, public_endpoint_url="https://files.example.org")
    url = store.presign_get("k", expires=60)
    assert url is not None
    assert url.startswith(f"https://files.example.org/{bucket}/k?")


def test_a_server_that_is_not_there_is_an_outage(dead_s3: S3Options) -> None:
    store = S3BlobStore(dead_s3, bucket="bucket")
    for ask in (store.get, store.stat, store.delete, lambda key: list(store.list(key))):
        with pytest.raises(BlobStoreUnavailable):
            ask("k")
    with pytest.raises(BlobStoreUnavailable):
        store.put("k", b"")
    with pytest.raises(SourceUnavailable):
        S3ObjectReader(dead_s3).head("bucket", "k")


def test_a_missing_bucket_is_not_an_outage(s3: S3Options) -> None:
    with pytest.raises(MediaNotFound):
        S3BlobStore(s3, bucket="no-such-bucket").get("k")


@pytest.mark.parametrize("bucket", ["", "UPPER CASE", "a/b", "x" * 70])
def test_a_name_that_no_bucket_has_is_not_found(s3: S3Options, bucket: str) -> None:
    with pytest.raises(MediaNotFound):
        S3ObjectReader(s3).head(bucket, "k")


def test_wrong_credentials_are_forbidden_to_sources_and_an_outage_to_us(s3: S3Options, bucket: str) -> None:
    wrong = replace(s3, secret_access_key="wrong")
    with pytest.raises(SourceForbidden):
        S3ObjectReader(wrong).head(bucket, "k")
    with pytest.raises(BlobStoreUnavailable):
        S3BlobStore(wrong, bucket=bucket).get("k")


class TestReader:
    @pytest.fixture
    def reader(self, s3: S3Options, bucket: str) -> S3ObjectReader:
        store = S3BlobStore(s3, bucket=bucket)
        for number in range(5):
            store.put(f"scans/{number}.png", bytes([number]) * (number + 1))
        return S3ObjectReader(s3)

    def test_head_tells_size_and_etag(self, reader: S3ObjectReader, bucket: str) -> None:
        stat = reader.head(bucket, "scans/2.png")
        assert stat.size == 3
        assert stat.etag
        assert '"' not in stat.etag
        assert stat.last_modified is not None
        with pytest.raises(MediaNotFound):
            reader.head(bucket, "scans/9.png")

    def test_read_gives_the_pinned_object(self, reader: S3ObjectReader, bucket: str) -> None:
        stat = reader.head(bucket, "scans/2.png")
        assert b"".join(reader.read(bucket, "scans/2.png", if_match=stat.etag)) == b"\x02\x02\x02"

    def test_a_replaced_object_has_changed(self, s3: S3Options, reader: S3ObjectReader, bucket: str) -> None:
        stat = reader.head(bucket, "scans/2.png")
        S3BlobStore(s3, bucket=bucket).put("scans/2.png", b"something else")
        with pytest.raises(MediaChanged):
            b"".join(reader.read(bucket, "scans/2.png", if_match=stat.etag))

    def test_the_listing_is_resumable(self, reader: S3ObjectReader, bucket: str) -> None:
        keys = [stat.key for stat in reader.list(bucket, "scans/")]
        assert keys == [f"scans/{number}.png" for number in range(5)]
        assert [stat.key for stat in reader.list(bucket, "scans/", start_after=keys[1])] == keys[2:]
        assert all(stat.etag and stat.size for stat in reader.list(bucket, "scans/"))


def answering(answer: bytes) -> Iterator[str]:
    """A server that gives one fixed answer to everything and hangs up."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\nETag: "x"\r\nConnection: close\r\n\r\nonly this',
        b"rubbish",
    ],
    ids=["slow down", "error", "truncated", "no http"],
)
def test_a_broken_answer_is_an_outage(s3: S3Options, answer: bytes) -> None:
    for endpoint in answering(answer):
        options = replace(s3, endpoint_url=endpoint)
        with pytest.raises(SourceUnavailable):
            b"".join(S3ObjectReader(options).read("bucket", "k"))
        with pytest.raises(BlobStoreUnavailable):
            S3BlobStore(options, bucket="bucket").get("k")


@pytest.mark.timeout(30)  # what it guards against spins for ever
def test_a_server_that_breaks_off_before_it_takes_the_body_is_an_outage(s3: S3Options) -> None:
    for endpoint in answering(b"HTTP/1.1 100 Continue\r\n"):
        with pytest.raises(BlobStoreUnavailable):
            S3BlobStore(replace(s3, endpoint_url=endpoint), bucket="bucket").put("k", b"data")
