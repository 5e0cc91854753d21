"""Fetched files on this machine's scratch disk: named by content, shared by all its processes, bounded.

Whoever uses a file holds a shared lock on it, and eviction takes only what it can lock alone, oldest use first. Locks
are the kernel's, so a killed process leaves none behind.

How much lies here stands in a ledger, kept under the lock of eviction: a store does not walk the folder (with thousands
of small files that cost more than fetching them). It is walked when the ledger says full, when it is missing, and every
few minutes, which also corrects what others deleted.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from pipelines.jobs.errors import ScratchFull

_STALE_SECONDS = 3600.0
_WALK_SECONDS = 600.0
_SLACK = 32  # a full cache is emptied by one part in so many more than needed: a walk pays for many stores


class Pin:
    """A shared lock on a cached file. Released by `close`, by the end of the object, or by the end of the process."""

    def __init__(self, descriptor: int) -> None:
        self._release = weakref.finalize(self, os.close, descriptor)

    def close(self) -> None:
        """Release it. Repeatable."""
        self._release()


@dataclass(frozen=True, kw_only=True)
class CachedFile:
    """A file that stays as long as `pin` is held."""

    path: Path
    sha256: str
    size: int
    pin: Pin = field(repr=False, compare=False)


class DiskCache:
    """Safe for threads and for several processes on one folder. `max_bytes` bounds all files together.

    `reserve`: bytes of the disk that stay free, whoever fills it; unused files give way to that.
    """

    def __init__(self, folder: Path, max_bytes: int, *, reserve: int = 0) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._reserve = reserve
        self._objects, self._names = folder / "objects", folder / "names"
        self._locks, self._unfinished = folder / "locks", folder / "tmp"
        with scratch_errors():
            for part in (self._objects, self._names, self._locks, self._unfinished):
                part.mkdir(parents=True, exist_ok=True)

    def find(self, sha256: str) -> CachedFile | None:
        """The file of this content, pinned; None where it is not here."""
        path = self._path(sha256)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        pin = Pin(descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        about = os.fstat(descriptor)
        if about.st_nlink == 0:  # evicted between the two calls
            pin.close()
            return None
        with suppress(OSError):
            os.utime(path)  # the order of eviction
        return CachedFile(path=path, sha256=sha256, size=about.st_size, pin=pin)

    def content_of(self, name: str) -> str | None:
        """The SHA-256 (hex) that was stored under a name, though its file may be evicted."""
        try:
            return self._name_path(name).read_text()
        except FileNotFoundError:
            return None

    @contextmanager
    def exclusive(self, name: str) -> Iterator[None]:
        """One process or thread at a time for a name (and a few others): so that a source is fetched once."""
        with scratch_errors(), (self._locks / _digest(name)[:2]).open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def store(self, pieces: Iterable[bytes], *, name: str | None = None) -> CachedFile:
        """Write a file, and remember it under `name`. Raises `ScratchFull`, and whatever iterating raises."""
        with scratch_errors():
            descriptor, temporary = tempfile.mkstemp(dir=self._unfinished)
        path = Path(temporary)
        try:
            with os.fdopen(descriptor, "wb") as file:
                fcntl.flock(file, fcntl.LOCK_SH)  # tells it from the leftovers of a killed process; it is the pin later
                digest, size = hashlib.sha256(), 0
                for piece in pieces:
                    digest.update(piece)
                    size += len(piece)
                    if self._lacking() > 0:
                        self.relieve()
                    with scratch_errors():
                        file.write(piece)
                with scratch_errors():
                    file.flush()
                sha256 = digest.hexdigest()
                with scratch_errors(), self._evicting() as ledger:
                    found = self._settle(path, sha256, size, ledger)
        finally:
            path.unlink(missing_ok=True)
        if name is not None:
            self._remember(name, sha256)
        return found

    def _settle(self, path: Path, sha256: str, size: int, ledger: BinaryIO) -> CachedFile:
        """Give a finished file its place and pin it, while nobody can evict.

        A file of this content that is there already stays: others hold their pins on that one, and what took its place
        could be evicted from under them.
        """
        found = self.find(sha256)
        if found is not None and found.size == size:
            return found
        self._make_room(size, ledger)
        target = self._path(sha256)
        target.parent.mkdir(exist_ok=True)
        path.replace(target)
        found = self.find(sha256)
        if found is None:
            raise ScratchFull("Something outside the worker empties its scratch cache; give the worker a folder alone.")
        return found

    def _remember(self, name: str, sha256: str) -> None:
        with scratch_errors():
            descriptor, temporary = tempfile.mkstemp(dir=self._unfinished)
            os.write(descriptor, sha256.encode())
            os.close(descriptor)
            target = self._name_path(name)
            target.parent.mkdir(exist_ok=True)
            Path(temporary).replace(target)

    def size(self) -> int:
        """Bytes of all finished files."""
        return sum(about.st_size for _, about in _files(self._objects))

    def relieve(self) -> bool:
        """Whether the disk has its reserve free; unused files are evicted for it, the oldest use first."""
        if self._lacking() <= 0:
            return True
        with suppress(ScratchFull), scratch_errors(), self._evicting() as ledger:
            self._make_room(0, ledger)
        return self._lacking() <= 0

    def _lacking(self) -> int:
        """Bytes of the reserve that are taken."""
        return self._reserve - shutil.disk_usage(self._folder).free if self._reserve else 0

    @contextmanager
    def _evicting(self) -> Iterator[BinaryIO]:
        with (self._locks / "eviction").open("a+b") as ledger:
            fcntl.flock(ledger, fcntl.LOCK_EX)
            yield ledger

    def _make_room(self, needed: int, ledger: BinaryIO) -> None:
        total, walked = _read(ledger)
        old = not 0 <= time.time() - walked < _WALK_SECONDS
        if old or total + needed > self._max_bytes or self._lacking() > 0:
            total, walked = self._walk(needed), time.time()
        _write(ledger, total + needed, walked)

    def _walk(self, needed: int) -> int:
        """Count what lies here, evict what is too much; the bytes that stay."""
        self._sweep()
        files = sorted(_files(self._objects), key=lambda entry: entry[1].st_mtime_ns)
        total = sum(about.st_size for _, about in files)
        most = self._max_bytes - needed
        enough = most if total <= most else most - self._max_bytes // _SLACK
        for path, about in files:
            if total <= enough and self._lacking() <= 0:
                break
            if _remove_unused(path):
                total -= about.st_size
        if total > most:
            raise ScratchFull("The worker's scratch cache is full of files in use; give it more space.")
        return total

    def _sweep(self) -> None:
        """Remove leftovers of killed processes, and names whose file is long gone."""
        old = time.time() - _STALE_SECONDS
        for path, about in _files(self._unfinished):
            if about.st_mtime < old:
                _remove_unused(path)
        for path, about in _files(self._names):
            if about.st_mtime < old and not self._path(path.read_text()).exists():
                path.unlink(missing_ok=True)

    def _path(self, sha256: str) -> Path:
        return self._objects / sha256[:2] / sha256

    def _name_path(self, name: str) -> Path:
        digest = _digest(name)
        return self._names / digest[:2] / digest


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            if path.is_file():
                yield path, path.stat()


def _read(ledger: BinaryIO) -> tuple[int, float]:
    """Bytes, and when they were last counted; a ledger that tells nothing was never counted."""
    ledger.seek(0)
    try:
        total, walked = ledger.read().split()
        return int(total), float(walked)
    except ValueError:
        return 0, 0.0


def _write(ledger: BinaryIO, total: int, walked: float) -> None:
    ledger.seek(0)
    ledger.truncate()
    ledger.write(f"{total} {walked}".encode())
    ledger.flush()


def _remove_unused(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


@contextmanager
def scratch_errors() -> Iterator[None]:
    """A full disk raises `ScratchFull`; other errors go on."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise ScratchFull("The worker's scratch disk is full.") from error
        raise
