"""Fetching: counted, hashed, sniffed, pinned, once."""

from __future__ import annotations

import hashlib
import ipaddress
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from pipelines.blobs.memory import MemoryBlobStore
from pipelines.jobs.errors import (
    BatchsightError,
    EmptyDocument,
    InvalidParameter,
    MediaChanged,
    MediaNotFound,
    MediaTooLarge,
    SourceDisabled,
    SourceForbidden,
    SourceUnavailable,
    UnsupportedMedia,
)
from pipelines.media.cache import DiskCache
from pipelines.media.limits import MediaLimits
from pipelines.media.sniff import MediaType
from pipelines.media.sources import Fetcher, HttpsSource, S3Source, UploadSource
from pipelines.media.ssrf import AddressPolicy, guarded_client
from tests.unit.media.samples import encoded, noise, pdf
from tests.unit.media.servers import answer, http_server

PICTURE = encoded(noise(64, 64), "PNG")
SHA256 = hashlib.sha256(PICTURE).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Stat:
    key: str
    size: int
    etag: str
    version_id: str | None = None


class Bucket:
    """A bucket in memory that counts its reads; the real ones are tested with the blob stores."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.reads = 0
        self.pause = 0.0

    def head(self, bucket: str, key: str) -> Stat:
        if key not in self.objects:
            raise MediaNotFound("There is no such object.")
        data = self.objects[key]
        return Stat(key=key, size=len(data), etag=hashlib.md5(data).hexdigest())

    def read(
        self, bucket: str, key: str, *, version_id: str | None = None, if_match: str | None = None
    ) -> Iterator[bytes]:
        self.reads += 1
        time.sleep(self.pause)
        if if_match is not None and self.head(bucket, key).etag != if_match:
            raise MediaChanged("The object was replaced.")
        data = self.objects[key]
        return (data[start : start + 1000] for start in range(0, len(data), 1000))


@pytest.fixture
def bucket() -> Bucket:
    bucket = Bucket()
    bucket.objects["a.png"] = PICTURE
    return bucket


@pytest.fixture
def fetcher(tmp_path: Path, bucket: Bucket) -> Fetcher:
    return Fetcher(DiskCache(tmp_path, 10_000_000), objects=bucket)


SOURCE = S3Source(bucket="bucket", key="a.png")


def test_a_file_comes_with_its_hash_size_and_type(fetcher: Fetcher) -> None:
    source = fetcher.pin(SOURCE)
    assert isinstance(source, S3Source)
    assert source.etag
    with fetcher.fetch(source) as fetched:
        assert fetched.path.read_bytes() == PICTURE
        assert (fetched.sha256, fetched.size, fetched.media_type) == (SHA256, len(PICTURE), MediaType.PNG)
        assert fetched.version == source.etag


def test_a_pinned_source_is_fetched_once(fetcher: Fetcher, bucket: Bucket) -> None:
    source = fetcher.pin(SOURCE)
    for _ in range(3):
        fetcher.fetch(source).close()
    assert bucket.reads == 1
    fetcher.fetch(replace(SOURCE, sha256=SHA256)).close()
    assert bucket.reads == 1, "its bytes are known by their hash as well"


def test_threads_that_want_the_same_file_fetch_it_once(fetcher: Fetcher, bucket: Bucket) -> None:
    source, bucket.pause = fetcher.pin(SOURCE), 0.1
    threads = [threading.Thread(target=lambda: fetcher.fetch(source).close()) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bucket.reads == 1


def test_an_unpinned_source_is_fetched_again(fetcher: Fetcher, bucket: Bucket) -> None:
    fetcher.fetch(SOURCE).close()
    bucket.objects["a.png"] = encoded(noise(10, 10), "PNG")
    with fetcher.fetch(SOURCE) as fetched:
        assert fetched.sha256 != SHA256


def test_a_replaced_object_has_changed(fetcher: Fetcher, bucket: Bucket) -> None:
    source = fetcher.pin(SOURCE)
    bucket.objects["a.png"] = encoded(noise(10, 10), "PNG")
    with pytest.raises(MediaChanged):
        fetcher.fetch(source)
    with pytest.raises(MediaChanged):
        fetcher.fetch(replace(SOURCE, sha256=SHA256))


def test_what_is_missing_is_not_found(fetcher: Fetcher) -> None:
    with pytest.raises(MediaNotFound):
        fetcher.pin(replace(SOURCE, key="b.png"))


def test_bad_keys_never_reach_the_bucket(fetcher: Fetcher, bucket: Bucket) -> None:
    for key in ("../secret", "a/../b", "a\x00b", ""):
        with pytest.raises(InvalidParameter):
            fetcher.fetch(replace(SOURCE, key=key))
    assert bucket.reads == 0


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", EmptyDocument),
        (b"plain text", UnsupportedMedia),
        (b"MZ" + b"\0" * 100_000, UnsupportedMedia),
        (PICTURE + b"\0" * 60_000, MediaTooLarge),
        (b"GIF89a" + b"\0" * 60_000, MediaTooLarge),
        (pdf([(10, 10, b"")]) + b"\0" * 100_000, MediaTooLarge),
    ],
    ids=["empty", "text", "program", "picture", "small head", "document"],
)
def test_type_and_size_are_checked_while_reading(
    tmp_path: Path, bucket: Bucket, data: bytes, error: type[Exception]
) -> None:
    limits = MediaLimits(image_bytes=50_000, document_bytes=90_000, video_bytes=200_000)
    fetcher = Fetcher(DiskCache(tmp_path, 10_000_000), limits, objects=bucket)
    bucket.objects["a.png"] = data
    with pytest.raises(error):
        fetcher.fetch(SOURCE)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_reading_stops_at_the_limit(tmp_path: Path) -> None:
    class Endless(Bucket):
        given = 0

        def read(
            self, bucket: str, key: str, *, version_id: str | None = None, if_match: str | None = None
        ) -> Iterator[bytes]:
            yield PICTURE
            while True:
                self.given += 1
                yield b"\0" * 1000

    bucket = Endless()
    fetcher = Fetcher(DiskCache(tmp_path, 10_000_000), MediaLimits(image_bytes=50_000), objects=bucket)
    with pytest.raises(MediaTooLarge):
        fetcher.fetch(SOURCE)
    assert bucket.given < 60


def test_a_source_that_drips_is_unavailable(tmp_path: Path, bucket: Bucket) -> None:
    bucket.pause = 0.05
    limits = MediaLimits(fetch_seconds=0.01, fetch_bytes_per_second=1_000_000_000)
    with pytest.raises(SourceUnavailable):
        Fetcher(DiskCache(tmp_path, 10_000_000), limits, objects=_Dripping(bucket)).fetch(SOURCE)


class _Dripping:
    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def head(self, bucket: str, key: str) -> Stat:
        return self._bucket.head(bucket, key)

    def read(
        self, bucket: str, key: str, *, version_id: str | None = None, if_match: str | None = None
    ) -> Iterator[bytes]:
        for piece in self._bucket.read(bucket, key):
            time.sleep(0.01)
            yield piece


def test_uploads_come_from_the_blob_store(tmp_path: Path) -> None:
    uploads = MemoryBlobStore()
    uploads.put("uploads/1", PICTURE)
    fetcher = Fetcher(DiskCache(tmp_path, 10_000_000), uploads=uploads)
    for _ in range(2):
        with fetcher.fetch(UploadSource(key="uploads/1")) as fetched:
            assert fetched.sha256 == SHA256
    with pytest.raises(MediaNotFound):
        fetcher.fetch(UploadSource(key="uploads/2"))


def test_sources_that_are_switched_off_say_so(tmp_path: Path) -> None:
    fetcher = Fetcher(DiskCache(tmp_path, 1000))
    for source in (SOURCE, UploadSource(key="k"), HttpsSource(url="https://example.org/a.png")):
        with pytest.raises(SourceDisabled):
            fetcher.fetch(source)


# https


def cut_short(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(PICTURE)))
    handler.end_headers()
    handler.wfile.write(PICTURE[:1000])


def silent(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(PICTURE)))
    handler.end_headers()
    handler.wfile.write(PICTURE[:1000])
    handler.wfile.flush()
    time.sleep(1)


def lying(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"%x\r\n%s\r\n" % (len(PICTURE), PICTURE))
    for _ in range(2000):
        handler.wfile.write(b"3e8\r\n" + b"\0" * 1000 + b"\r\n")


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[Fetcher, str]]:
    routes = {
        "/a.png": answer(200, PICTURE, ETag='W/"v1"', Content_Type="text/html"),
        "/moved": answer(301, Location="/a.png"),
        "/loop": answer(302, Location="/loop"),
        "/gone": answer(410),
        "/missing": answer(404, b"no"),
        "/private": answer(403),
        "/busy": answer(503, Retry_After="5"),
        "/limited": answer(429),
        "/empty": answer(200),
        "/nothing": answer(204),
        "/page": answer(200, b"<html>an error page with status 200</html>", Content_Type="image/png"),
        "/gzip": answer(200, PICTURE, Content_Encoding="gzip"),
        "/cut": cut_short,
        "/silent": silent,
        "/endless": lying,
    }
    policy = AddressPolicy(
        allow_http=True, networks=(ipaddress.ip_network("127.0.0.0/8"),), resolver=lambda host, port: ["127.0.0.1"]
    )
    limits = MediaLimits(image_bytes=200_000)
    with http_server(routes) as port, guarded_client(policy=policy, idle_seconds=0.3) as client:
        yield Fetcher(DiskCache(tmp_path, 10_000_000), limits, https=client), f"http://media.test:{port}"


def test_an_address_is_fetched_by_its_bytes_not_by_its_headers(web: tuple[Fetcher, str]) -> None:
    fetcher, base = web
    for path in ("/a.png", "/moved"):
        with fetcher.fetch(HttpsSource(url=base + path)) as fetched:
            assert (fetched.sha256, fetched.media_type) == (SHA256, MediaType.PNG)
    with fetcher.fetch(HttpsSource(url=base + "/a.png", etag="v1")) as fetched:
        assert fetched.version == "v1"


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/gone", MediaNotFound),
        ("/missing", MediaNotFound),
        ("/nothing", MediaNotFound),
        ("/private", SourceForbidden),
        ("/loop", SourceForbidden),
        ("/busy", SourceUnavailable),
        ("/limited", SourceUnavailable),
        ("/cut", SourceUnavailable),
        ("/silent", SourceUnavailable),
        ("/empty", EmptyDocument),
        ("/page", UnsupportedMedia),
        ("/gzip", UnsupportedMedia),
        ("/endless", MediaTooLarge),
    ],
)
def test_a_bad_answer_has_its_own_error(web: tuple[Fetcher, str], path: str, error: type[BatchsightError]) -> None:
    fetcher, base = web
    with pytest.raises(error):
        fetcher.fetch(HttpsSource(url=base + path))


def test_another_etag_is_a_change(web: tuple[Fetcher, str]) -> None:
    fetcher, base = web
    with pytest.raises(MediaChanged):
        fetcher.fetch(HttpsSource(url=base + "/a.png", etag="v0"))


@pytest.mark.parametrize("url", ["", "not a url", "https://", "gopher://a.test/", "https://a.test:99999/", "//a.test/"])
def test_what_is_no_address_is_refused(web: tuple[Fetcher, str], url: str) -> None:
    with pytest.raises((SourceForbidden, SourceUnavailable)):
        web[0].fetch(HttpsSource(url=url))


def test_a_server_that_is_not_there_is_unavailable(web: tuple[Fetcher, str]) -> None:
    with pytest.raises(SourceUnavailable):
        web[0].fetch(HttpsSource(url="http://media.test:1/a.png"))


def test_a_long_video_may_be_larger_than_a_picture(tmp_path: Path, bucket: Bucket, clips: Path) -> None:
    bucket.objects["a.png"] = (clips / "h264.mp4").read_bytes()
    limits = MediaLimits(image_bytes=1000)
    with Fetcher(DiskCache(tmp_path, 10_000_000), limits, objects=bucket).fetch(SOURCE) as fetched:
        assert fetched.media_type is MediaType.MP4
