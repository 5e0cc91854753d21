"""The fetch cache: bounded, shared by processes, never taking a file from under its user."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.jobs.errors import ScratchFull, SourceUnavailable
from pipelines.media.cache import DiskCache


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_file_is_found_by_content_and_by_name(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 1000)
    stored = cache.store([b"hel", b"lo"], name="greeting")
    assert (stored.sha256, stored.size, stored.path.read_bytes()) == (digest(b"hello"), 5, b"hello")
    assert cache.content_of("greeting") == digest(b"hello")
    assert cache.content_of("other") is None
    found = DiskCache(tmp_path, 1000).find(digest(b"hello"))
    assert found is not None
    assert found.path == stored.path
    assert cache.find(digest(b"other")) is None


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 30)
    digests = []
    for number in range(3):
        stored = cache.store([bytes([number]) * 10])
        stored.pin.close()
        os.utime(stored.path, (number, number))
        digests.append(stored.sha256)
    first = cache.find(digests[0])  # used just now
    assert first is not None
    first.pin.close()
    cache.store([b"x" * 10]).pin.close()
    assert [cache.find(sha) is not None for sha in digests] == [True, False, True]
    assert cache.size() <= 30


def test_a_store_does_not_walk_the_folder_but_a_full_cache_is_counted_anew(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 30)
    cache.store([b"a" * 10]).pin.close()
    stray = tmp_path / "objects" / "stray"
    stray.write_bytes(b"x" * 10)
    os.utime(stray, (1, 1))
    cache.store([b"b" * 10]).pin.close()
    assert stray.exists(), "not seen: the ledger says 20 of 30 bytes"
    cache.store([b"c" * 10]).pin.close()
    cache.store([b"d" * 10]).pin.close()
    assert not stray.exists()
    assert cache.size() <= 30


def test_a_ledger_that_tells_nothing_is_made_anew(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 20)
    cache.store([b"a" * 10]).pin.close()
    cache.store([b"b" * 10]).pin.close()
    (tmp_path / "locks" / "eviction").write_bytes(b"?")
    cache.store([b"c" * 10]).pin.close()
    assert cache.size() == 20


def test_a_file_in_use_is_never_evicted(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 20)
    kept = cache.store([b"a" * 10])
    for letter in (b"b", b"c", b"d"):
        cache.store([letter * 10]).pin.close()
    assert kept.path.read_bytes() == b"a" * 10
    kept.pin.close()
    cache.store([b"e" * 20]).pin.close()
    assert not kept.path.exists()


def test_a_cache_full_of_files_in_use_is_full(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 20)
    kept = [cache.store([letter * 10]) for letter in (b"a", b"b")]
    with pytest.raises(ScratchFull):
        cache.store([b"c" * 10])
    assert all(file.path.exists() for file in kept)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_forgotten_pin_ends_with_its_object(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 10)
    cache.store([b"a" * 10])
    cache.store([b"b" * 10]).pin.close()
    assert cache.size() == 10


def test_a_source_that_breaks_leaves_nothing(tmp_path: Path) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"half"
        raise SourceUnavailable("The source broke off.")

    cache = DiskCache(tmp_path, 100)
    with pytest.raises(SourceUnavailable):
        cache.store(pieces(), name="n")
    assert cache.content_of("n") is None
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name != "locks"] == []


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 100)
    old, young = tmp_path / "tmp" / "old", tmp_path / "tmp" / "young"
    for path in (old, young):
        path.write_bytes(b"x")
    os.utime(old, (time.time() - 7200,) * 2)
    cache.store([b"y"]).pin.close()
    assert not old.exists()
    assert young.exists()


def test_one_thread_at_a_time_for_a_name(tmp_path: Path) -> None:
    inside, most = 0, 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal inside, most
        with DiskCache(tmp_path, 100).exclusive("name"):
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.01)
            with lock:
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_many_processes_keep_to_the_bound_and_to_each_other(tmp_path: Path) -> None:
    program = f"""
import random, sys
from pathlib import Path
from pipelines.media.cache import DiskCache
random.seed(int(sys.argv[1]))
cache = DiskCache(Path({str(tmp_path)!r}), 50_000)
for _ in range(300):
    letter = bytes([random.randrange(14)])  # few: the same content is often stored by two at once
    file = cache.store([letter * 5000], name=letter.hex())
    assert file.path.read_bytes() == letter * 5000
    file.pin.close()
    found = cache.find(cache.content_of(letter.hex()))
    if found is not None:
        assert found.path.read_bytes() == letter * 5000
        found.pin.close()
"""
    processes = [subprocess.Popen([sys.executable, "-c", program, str(seed)]) for seed in range(3)]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    assert DiskCache(tmp_path, 50_000).size() <= 50_000


def test_a_file_stored_again_is_the_one_that_others_have_pinned(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 12_000)
    first = cache.store([b"a" * 5000])
    before = first.path.stat().st_ino
    again = cache.store([b"a" * 5000])
    assert again.path.stat().st_ino == before
    again.pin.close()
    # Still counted once, and still held by the first pin: what fills the cache can't take it.
    cache.store([b"b" * 5000]).pin.close()
    cache.store([b"c" * 5000]).pin.close()
    assert first.path.read_bytes() == b"a" * 5000
    assert cache.find(first.sha256) is not None


def test_a_damaged_file_is_replaced_when_its_content_is_stored_again(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 12_000)
    file = cache.store([b"a" * 5000])
    file.pin.close()
    file.path.write_bytes(b"a" * 100)  # what a machine that lost power can leave
    assert cache.store([b"a" * 5000]).path.read_bytes() == b"a" * 5000


def test_a_full_disk_is_said_so(tmp_path: Path) -> None:
    # RLIMIT_FSIZE makes the kernel refuse real writes.
    program = f"""
import resource, signal
from pathlib import Path
from pipelines.media.cache import DiskCache
from pipelines.jobs.errors import ScratchFull
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
cache = DiskCache(Path({str(tmp_path)!r}), 10_000_000)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    cache.store([b"x" * 50_000] * 4)
except ScratchFull as error:
    print(error.retry)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "transient"
    assert list((tmp_path / "tmp").iterdir()) == []


def test_unused_files_give_way_to_a_disk_that_fills_up(tmp_path: Path) -> None:
    roomy = DiskCache(tmp_path, 1000, reserve=1)
    kept, unused = roomy.store([b"kept"]), roomy.store([b"unused"])
    unused.pin.close()
    assert roomy.relieve()
    assert unused.path.exists()
    crowded = DiskCache(tmp_path, 1000, reserve=shutil.disk_usage(tmp_path).total)
    assert not crowded.relieve()
    assert (kept.path.exists(), unused.path.exists()) == (True, False)
    stored = crowded.store([b"new"])  # the reserve is headroom: what is under way goes on
    assert stored.path.read_bytes() == b"new"
