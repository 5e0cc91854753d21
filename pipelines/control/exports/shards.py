"""The shards of an export, from a cursor on: read a page of results at a time, write, put, hand over to be committed.

A pure iteration, as planning is: the caller commits each step together with its cursor, so a worker that dies is
resumed where it was. A shard ends at a number of rows or bytes, whatever comes first, and its name holds the hash of
its bytes: done twice, it is the same object. Items without a result (failed, cancelled) go to shards of their own,
always JSON Lines, so that whoever loads answers never trips over an error; together the two hold every item.

Rejected: one statement with a server-side cursor (a transaction of many minutes holds back vacuum on the busiest
tables, and a lost connection starts it over); numbers alone as names (a late writer could replace a shard by another).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.blobs.base import BlobStat, Data
from pipelines.control.exports.names import file_name
from pipelines.control.exports.parquet import ParquetSpool
from pipelines.control.exports.spool import LinesSpool, Spool
from pipelines.control.lines import line_of
from pipelines.control.markdown import body
from pipelines.control.query import ResultView
from pipelines.jobs.errors import BlobStoreUnavailable
from pipelines.jobs.exports import Compression, ExportFormat, ExportOptions, FileContent
from pipelines.jobs.states import ItemState
from pipelines.media.cache import scratch_errors
from pipelines.store.exports import Shard
from pipelines.store.values import to_json

PAGE = 500
"""Results in memory at a time."""

FILES = 500
"""Files a shard of the format `files`: so many are put again after a kill."""

FILES_BYTES = 16 * 1024 * 1024
"""The same, in bytes: they are in memory until they are put."""

_PUTS = 8
_DIGEST = 16
_SUFFIXES = {FileContent.MARKDOWN: ".md", FileContent.TEXT: ".txt", FileContent.JSON: ".json"}

Read = Callable[[int, int], Sequence[ResultView]]
"""Ended items behind a seq, in order, at most so many."""

Put = Callable[[str, Data], BlobStat]
"""Stores one object of the export under its name."""


@dataclass(frozen=True, kw_only=True)
class ShardTools:
    """What writing needs. `stopped`: give up as soon as possible, for nobody waits any more."""

    read: Read
    put: Put
    scratch: Path
    gpu_second_cost: float
    stopped: Callable[[], bool]


@dataclass(frozen=True, kw_only=True)
class Written:
    """Shards that lie at the target, and the cursor behind them. `done`: nothing is left but the manifest."""

    shards: tuple[Shard, ...]
    cursor: dict[str, Any]
    done: bool


def write_shards(options: ExportOptions, cursor: Mapping[str, Any], tools: ShardTools) -> Iterator[Written]:
    """Write from `cursor` on (empty: from the start). Ends early, without `done`, once `tools.stopped()`."""
    after, number = int(cursor.get("after", -1)), int(cursor.get("number", 0))
    done = bool(cursor.get("done", False))
    while not done and not tools.stopped():
        with ExitStack() as held:
            shard = held.enter_context(closing(_OpenShard(options, tools, number=number, after=after)))
            if not shard.fill():
                return
            written, after, number, done = shard.put(), shard.after, number + 1, shard.exhausted
        yield Written(shards=written, cursor={"after": after, "number": number, "done": done}, done=done)


class _OpenShard:
    """One number: results (or files and their index) and errors of the same run of items."""

    def __init__(self, options: ExportOptions, tools: ShardTools, *, number: int, after: int) -> None:
        self._options = options
        self._tools = tools
        self._number = number
        self._first = after + 1
        self.after = after
        self.exhausted = False
        self._files: list[tuple[str, bytes]] = []
        self._files_bytes = 0
        self._as_files = options.format is ExportFormat.FILES
        self._most_bytes = min(options.shard_bytes, FILES_BYTES) if self._as_files else options.shard_bytes
        self._most_rows = min(options.shard_rows, FILES) if self._as_files else options.shard_rows
        self._results = self._spool()
        self._errors: Spool = LinesSpool(tools.scratch, Compression.NONE)

    def _spool(self) -> Spool:
        if self._options.format is ExportFormat.PARQUET:
            return ParquetSpool(self._tools.scratch, self._options.codec)
        return LinesSpool(self._tools.scratch, self._options.codec)

    def fill(self) -> bool:
        """Take items until it is full or none are left; False where the work was stopped."""
        while not self._full():
            if self._tools.stopped():
                return False
            limit = min(PAGE, self._most_rows - self._rows)
            page = self._tools.read(self.after, limit)
            for view in page:
                self._take(view)
                if self._full():
                    break
            else:
                if len(page) < limit:
                    self.exhausted = True
                    break
        return True

    @property
    def _rows(self) -> int:
        return self._results.rows + self._errors.rows

    def _full(self) -> bool:
        written = self._results.written + self._errors.written + self._files_bytes
        return self._rows >= self._most_rows or written >= self._most_bytes

    def _take(self, view: ResultView) -> None:
        line = line_of(view, gpu_second_cost=self._tools.gpu_second_cost)
        encoded = to_json(line).encode()
        self.after = view.seq
        with scratch_errors():
            if view.state is not ItemState.SUCCEEDED:
                self._errors.add(line, encoded)
            elif self._as_files:
                self._take_file(view, encoded)
            else:
                self._results.add(line, encoded)

    def _take_file(self, view: ResultView, encoded: bytes) -> None:
        content = self._options.content
        name = "files/" + file_name(doc=view.doc, name=view.name, page=view.page, suffix=_SUFFIXES[content])
        match content:
            case FileContent.MARKDOWN:
                data = f"{body(view)}\n".encode()
            case FileContent.TEXT:
                data = (view.text or "").encode()
            case FileContent.JSON:
                data = encoded + b"\n"
        self._files.append((name, data))
        self._files_bytes += len(data)
        entry = {
            "seq": view.seq,
            "document": view.name,
            "page": None if view.page is None else view.page + 1,
            "name": name,
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        self._results.add(entry, to_json(entry).encode())

    def put(self) -> tuple[Shard, ...]:
        """Everything at the target: files before the index that names them."""
        if self._files:
            with ThreadPoolExecutor(_PUTS) as pool:
                list(pool.map(lambda file: self._tools.put(*file), self._files))
        parts = [("files" if self._as_files else "results", "index" if self._as_files else "results", self._results)]
        parts.append(("errors", "errors", self._errors))
        return tuple(self._put(content, stem, spool) for content, stem, spool in parts if spool.rows)

    def _put(self, content: str, stem: str, spool: Spool) -> Shard:
        with scratch_errors():
            digest, size = spool.seal()
        name = f"{stem}-{self._number:05d}-{digest[:_DIGEST]}{spool.suffix}"
        stat = self._tools.put(name, spool.pieces())
        if stat.size != size or stat.sha256 not in {None, digest}:
            raise BlobStoreUnavailable("the target stored something else than was sent; try again")
        return Shard(
            number=self._number,
            content=content,
            name=name,
            rows=spool.rows,
            bytes=size,
            sha256=digest,
            first_seq=self._first,
            last_seq=self.after,
        )

    def close(self) -> None:
        """Give the disk space back."""
        self._results.close()
        self._errors.close()
