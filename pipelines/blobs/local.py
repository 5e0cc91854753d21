"""Blobs as files in one folder: for one machine, and for several over a shared file system.

A key is a path below the folder. Files appear by rename, after their bytes are on the disk, so a reader sees a whole
blob or none, after a crash too.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from pipelines.blobs.base import CHUNK_BYTES, BlobStat, Data, Hashed, check_key
from pipelines.jobs.errors import BlobStoreUnavailable, InvalidParameter, MediaNotFound

# Unfinished files start so; keys may not, or a listing would have to guess.
_TEMPORARY = ".tmp-"
_MAX_PART_BYTES = 255  # of one file name on usual file systems


class LocalBlobStore:
    """Meets `BlobStore`. `durable=False` skips fsync, for tests."""

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder.resolve()
        self._durable = durable

    def _path(self, key: str) -> Path:
        parts = check_key(key).split("/")
        if any(part.startswith(_TEMPORARY) or len(part.encode()) > _MAX_PART_BYTES for part in parts):
            raise InvalidParameter(
                f"A part of a key has at most {_MAX_PART_BYTES} bytes and does not start with {_TEMPORARY}.",
                param="key",
            )
        return self._folder.joinpath(*parts)

    def put(self, key: str, data: Data, *, if_absent: bool = False) -> BlobStat:
        """See `BlobStore.put`."""
        path = self._path(key)
        if if_absent and path.is_file():
            return self.stat(key)
        hashed = Hashed(data)
        with _mapped():
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=_TEMPORARY, dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                for piece in hashed:
                    with _mapped():
                        file.write(piece)
                with _mapped():
                    file.flush()
                    if self._durable:
                        os.fsync(file.fileno())
            with _mapped():
                if if_absent:
                    try:
                        os.link(temporary, path)
                    except FileExistsError:
                        return self.stat(key)
                else:
                    temporary.replace(path)
                self._sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
        return BlobStat(key=key, size=hashed.size, sha256=hashed.sha256, modified=datetime.now(UTC))

    def _sync(self, folder: Path) -> None:
        if self._durable:
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def get(self, key: str) -> bytes:
        """See `BlobStore.get`."""
        with _mapped():
            return self._path(key).read_bytes()

    def stream(self, key: str) -> Iterator[bytes]:
        """See `BlobStore.stream`."""
        with _mapped():
            file = self._path(key).open("rb")

        def generate() -> Iterator[bytes]:
            with file, _mapped():
                while piece := file.read(CHUNK_BYTES):
                    yield piece

        return generate()

    def stat(self, key: str) -> BlobStat:
        """See `BlobStore.stat`."""
        with _mapped():
            path = self._path(key)
            if path.is_dir():
                raise FileNotFoundError(path)
            about = path.stat()
        return BlobStat(key=key, size=about.st_size, modified=datetime.fromtimestamp(about.st_mtime, UTC))

    def delete(self, key: str) -> None:
        """See `BlobStore.delete`; folders that it leaves empty go as well."""
        path = self._path(key)
        with suppress(MediaNotFound), _mapped():
            path.unlink()
        for folder in path.parents:
            if folder == self._folder:
                break
            try:
                folder.rmdir()
            except OSError:  # not empty, or a neighbour was quicker
                break

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[BlobStat]:
        """See `BlobStore.list`; one folder's names are in memory at a time."""
        with _mapped():
            yield from self._walk(self._folder, "", prefix, start_after.encode())

    def _walk(self, folder: Path, base: str, prefix: str, behind: bytes) -> Iterator[BlobStat]:
        names: list[str] = []
        with suppress(FileNotFoundError), os.scandir(folder) as entries:
            names = [f"{base}{e.name}/" if e.is_dir() else f"{base}{e.name}" for e in entries]
        # With its slash a folder sorts exactly where its keys do.
        for name in sorted(names, key=str.encode):
            if name.endswith("/"):
                if name.startswith(prefix) or prefix.startswith(name):
                    yield from self._walk(self._folder / name, name, prefix, behind)
            elif (
                name.startswith(prefix)
                and name.encode() > behind
                and not name.rpartition("/")[2].startswith(_TEMPORARY)
            ):
                with suppress(MediaNotFound):  # deleted meanwhile
                    yield self.stat(name)

    def presign_get(self, key: str, *, expires: float) -> str | None:
        """There is no server."""
        del key, expires
        return None

    def presign_put(self, key: str, *, expires: float) -> str | None:
        """There is no server."""
        del key, expires
        return None


@contextmanager
def _mapped() -> Iterator[None]:
    """The one boundary for errors of the file system."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError) as error:
        raise MediaNotFound("No blob is stored under this key.") from error
    except OSError as error:
        if error.errno in {errno.ENOTDIR, errno.EEXIST}:
            raise InvalidParameter("A key must not continue another key as a folder.", param="key") from error
        what = "is full" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "does not answer"
        raise BlobStoreUnavailable(f"The blob store {what}.") from error
