"""A shard that grows in an unnamed temporary file: flat memory, and nothing left behind by a kill."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import zstandard

from pipelines.blobs.base import CHUNK_BYTES
from pipelines.jobs.exports import Compression

SUFFIX = {Compression.NONE: "", Compression.GZIP: ".gz", Compression.ZSTD: ".zst"}
_GZIP_LEVEL = 6
_ZSTD_LEVEL = 3

Line = dict[str, Any]


class Spool(ABC):
    """Takes lines, then gives the packed bytes. `written` counts bytes before packing. Close it in any case.

    The same lines always become the same bytes: no times, no file names inside.
    """

    suffix: str

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by `close`
        self._sealed = False
        self.rows = 0
        self.written = 0

    def add(self, line: Line, encoded: bytes) -> None:
        """Append a row: its fields, and its JSON."""
        self._add(line, encoded)
        self.rows += 1
        self.written += len(encoded)

    def seal(self) -> tuple[str, int]:
        """Finish writing: SHA-256 (hex) and size of the packed bytes."""
        self._flush()
        self._end()
        self._sealed = True
        self._file.flush()
        self._file.seek(0)
        digest = hashlib.file_digest(self._file, "sha256").hexdigest()
        return digest, self._file.tell()

    def pieces(self) -> Iterator[bytes]:
        """The packed bytes, once sealed."""
        self._file.seek(0)
        while piece := self._file.read(CHUNK_BYTES):
            yield piece

    def close(self) -> None:
        """Give the disk space back."""
        if not self._sealed:
            with contextlib.suppress(OSError):  # a packer that was never ended would write when it is collected
                self._end()
        self._file.close()

    @property
    def file(self) -> IO[bytes]:
        """Where the packed bytes go."""
        return self._file

    @abstractmethod
    def _add(self, line: Line, encoded: bytes) -> None:
        """Write a row."""

    def _flush(self) -> None:  # noqa: B027 - most hold nothing back
        """Write what is still held back."""

    @abstractmethod
    def _end(self) -> None:
        """End the packed form."""


class LinesSpool(Spool):
    """JSON Lines, packed or not."""

    def __init__(self, folder: Path, codec: Compression) -> None:
        super().__init__(folder)
        self.suffix = f".jsonl{SUFFIX[codec]}"
        self._packed: Any
        match codec:
            case Compression.GZIP:
                self._packed = gzip.GzipFile(
                    filename="", mode="wb", compresslevel=_GZIP_LEVEL, fileobj=self.file, mtime=0
                )
            case Compression.ZSTD:
                self._packed = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).stream_writer(self.file, closefd=False)
            case Compression.NONE:
                self._packed = None

    def _add(self, line: Line, encoded: bytes) -> None:
        del line
        sink = self.file if self._packed is None else self._packed
        sink.write(encoded)
        sink.write(b"\n")

    def _end(self) -> None:
        if self._packed is not None:
            self._packed.close()
