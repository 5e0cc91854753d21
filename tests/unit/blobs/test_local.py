"""The local store meets the contract, and what a file system adds to it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.blobs.local import LocalBlobStore
from pipelines.jobs.errors import BlobStoreUnavailable, InvalidParameter, MediaNotFound
from tests.contracts.blob_store_contract import BlobStoreContract


class TestLocalBlobStore(BlobStoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> LocalBlobStore:
        return LocalBlobStore(tmp_path / "blobs", durable=False)


def test_an_unfinished_blob_is_neither_read_nor_listed(tmp_path: Path) -> None:
    store = LocalBlobStore(tmp_path)
    seen: list[object] = []

    def pieces() -> Iterator[bytes]:
        yield b"half"
        seen.extend(store.list(""))
        with pytest.raises(MediaNotFound):
            store.get("k")
        yield b"whole"

    store.put("k", pieces())
    assert seen == []
    assert store.get("k") == b"halfwhole"
    assert [path.name for path in tmp_path.iterdir()] == ["k"]


def test_one_of_many_writers_wins_when_absence_is_asked_for(tmp_path: Path) -> None:
    store = LocalBlobStore(tmp_path, durable=False)
    barrier = threading.Barrier(8)

    def write(number: int) -> None:
        def pieces() -> Iterator[bytes]:
            barrier.wait(10)  # all of them have seen that the blob is absent
            yield bytes([number]) * 1000

        store.put("k", pieces(), if_absent=True)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    content = store.get("k")
    assert len(content) == 1000
    assert len(set(content)) == 1


def test_a_key_cannot_be_both_blob_and_folder(tmp_path: Path) -> None:
    store = LocalBlobStore(tmp_path)
    store.put("a", b"1")
    with pytest.raises(InvalidParameter):
        store.put("a/b", b"2")


def test_parts_that_no_file_system_holds_are_refused(tmp_path: Path) -> None:
    store = LocalBlobStore(tmp_path)
    for key in ("x" * 256, ".tmp-abc"):
        with pytest.raises(InvalidParameter):
            store.put(key, b"")


def test_a_link_out_of_the_folder_is_not_followed_by_writes(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    store = LocalBlobStore(tmp_path / "blobs")
    (tmp_path / "blobs" / "k").symlink_to(outside)
    store.put("k", b"new")
    assert outside.read_bytes() == b"precious"
    assert store.get("k") == b"new"


def test_a_full_disk_is_an_outage_and_leaves_no_rubbish(tmp_path: Path) -> None:
    # RLIMIT_FSIZE makes the kernel refuse real writes; /dev/full would test another path.
    program = f"""
import resource, signal
from pathlib import Path
from pipelines.blobs.local import LocalBlobStore
from pipelines.jobs.errors import BlobStoreUnavailable
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = LocalBlobStore(Path({str(tmp_path)!r}))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    store.put("k", b"x" * 200_000)
except BlobStoreUnavailable as error:
    print(error.retry)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "transient"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_read_is_an_outage(tmp_path: Path) -> None:
    store = LocalBlobStore(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(BlobStoreUnavailable):
        store.get("loop")


def test_a_local_store_has_no_urls(tmp_path: Path) -> None:
    store = LocalBlobStore(tmp_path)
    assert store.presign_get("k", expires=60) is None
    assert store.presign_put("k", expires=60) is None
