"""PREPARE, one message: the documents of one job together, so that what costs a round trip costs it once.

Sources are fetched side by side, packs are looked up and recorded together, and written while the next is decoded.
Outcomes are handed out as they come, a few at a time: neither a slow neighbour nor a failed one holds an item back, and
what has been cut is not lost with the worker. An item whose lease is lost, or whose job is cancelled, is left out at
the next step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial

import structlog

from pipelines.jobs.models import ClaimedItem, JobSpec
from pipelines.jobs.outcomes import Outcome, Prepared
from pipelines.jobs.retry import after_failure
from pipelines.media import pack as packs
from pipelines.media.pack import Pack, TilePack
from pipelines.steps.prepare import DocumentPreparation, PrepareTools, PutPack, Result, media_hash_of

_log = structlog.get_logger(__name__)

_TOGETHER = 0.1
"""Seconds that fetched documents wait for the others of the message."""
_FLUSH = 0.3
"""Seconds after which finished items are handed out, though more of the message is to be cut."""
_UNWRITTEN = 128 * 1024 * 1024
"""Bytes of packs that may wait to be written, in memory."""

Stopped = Callable[[ClaimedItem], Outcome | None]


def prepare(
    items: Sequence[ClaimedItem], spec: JobSpec, tools: PrepareTools, *, stopped: Stopped = lambda _: None
) -> Iterator[list[Result]]:
    """Prepare items of one job; one outcome each, some at a time. Nothing is raised but what ends the process.

    `stopped`: the outcome of an item that should not be worked on any more, asked before each step.
    """
    return _Batch(spec, tools, stopped).run(items)


@dataclass(kw_only=True)
class _Cut:
    """An item whose pack is being written."""

    item: ClaimedItem
    versions: tuple[str | None, ...]
    size: int
    put: Future[PutPack]


class _Batch:
    def __init__(self, spec: JobSpec, tools: PrepareTools, stopped: Stopped) -> None:
        self._spec = spec
        self._tools = tools
        self._stopped = stopped
        self._ended: list[Result] = []
        self._cut: list[_Cut] = []

    def run(self, items: Sequence[ClaimedItem]) -> Iterator[list[Result]]:
        fetching: dict[Future[None], DocumentPreparation] = {}
        try:
            for group in _by_document(items):
                wanted = self._wanted(group)
                if not wanted:
                    continue
                try:
                    document = DocumentPreparation(wanted, self._spec, self._tools)
                except Exception as error:  # noqa: BLE001 - the boundary: any failure becomes a typed outcome
                    self._fail(wanted, error)
                else:
                    fetching[self._tools.threads.submit(document.fetch)] = document
            while fetching:
                done, _ = wait(fetching, _TOGETHER)
                if not done:
                    done, _ = wait(fetching, return_when="FIRST_COMPLETED")
                arrived = {future: document for future, document in fetching.items() if future in done}
                for future in arrived:
                    del fetching[future]
                yield from self._arrived(arrived)
                yield from self._flush()
            yield from self._flush()
        finally:
            for future, document in fetching.items():  # left early: whoever fetches must not find its files closed
                future.add_done_callback(partial(_close, document))

    def _arrived(self, arrived: dict[Future[None], DocumentPreparation]) -> Iterator[list[Result]]:
        """Look up what has been fetched, cut what is missing."""
        try:
            keys = self._keys(arrived)
            try:
                found = self._tools.shelf.find(list(set(keys.values()))) if keys else {}
            except Exception as error:  # noqa: BLE001 - the boundary
                self._fail([item for each in arrived.values() for item in each.items if item.seq in keys], error)
                return
            since = time.monotonic()
            for document in arrived.values():
                for item in [item for item in document.items if keys.get(item.seq) in found]:
                    stored = found[keys.pop(item.seq)]
                    outcome = Prepared(pack=stored.ref, media_hash=stored.media_hash, versions=document.versions)
                    self._ended.append((item, outcome))
                wanted = self._wanted([item for item in document.items if item.seq in keys])
                for item, pack in document.cut(wanted):
                    self._put(item, keys[item.seq], pack, document.versions)
                    if time.monotonic() - since > _FLUSH:
                        yield from self._flush()
                        since = time.monotonic()
                document.close()
        finally:
            for document in arrived.values():
                document.close()

    def _keys(self, arrived: dict[Future[None], DocumentPreparation]) -> dict[int, str]:
        """The name of each item's pack, of the documents that could be fetched."""
        keys: dict[int, str] = {}
        for future, document in arrived.items():
            try:
                future.result()
                keys |= {item.seq: document.key(item) for item in document.items}
            except Exception as error:  # noqa: BLE001 - the boundary
                self._fail(document.items, error)
        return keys

    def _put(self, item: ClaimedItem, key: str, pack: Pack | BaseException, versions: tuple[str | None, ...]) -> None:
        try:
            if isinstance(pack, BaseException):
                raise pack
            data = packs.encode(pack)
            while self._cut and sum(cut.size for cut in self._cut if not cut.put.done()) > _UNWRITTEN:
                wait([cut.put for cut in self._cut if not cut.put.done()], return_when="FIRST_COMPLETED")
            tiles = len(pack.tiles) if isinstance(pack, TilePack) else 0
            put = self._tools.threads.submit(
                self._tools.shelf.put, key, data, tiles=tiles, media_hash=media_hash_of(pack)
            )
        except Exception as error:  # noqa: BLE001 - the boundary
            self._fail([item], error)
        else:
            self._cut.append(_Cut(item=item, versions=versions, size=len(data), put=put))

    def _flush(self) -> Iterator[list[Result]]:
        """Record what has been written, hand out what has ended."""
        cuts, self._cut = self._cut, []
        written: list[tuple[_Cut, PutPack]] = []
        for cut in cuts:
            try:
                written.append((cut, cut.put.result()))
            except Exception as error:  # noqa: BLE001 - the boundary
                self._fail([cut.item], error)
        if written:
            try:
                self._tools.shelf.record(self._spec, [put for _, put in written])
            except Exception as error:  # noqa: BLE001 - the boundary
                self._fail([cut.item for cut, _ in written], error)
            else:
                for cut, put in written:
                    outcome = Prepared(pack=put.stored.ref, media_hash=put.stored.media_hash, versions=cut.versions)
                    self._ended.append((cut.item, outcome))
        ended, self._ended = self._ended, []
        if ended:
            yield ended

    def _wanted(self, items: Sequence[ClaimedItem]) -> list[ClaimedItem]:
        wanted = []
        for item in items:
            outcome = self._stopped(item)
            if outcome is None:
                wanted.append(item)
            else:
                self._ended.append((item, outcome))
        return wanted

    def _fail(self, items: Sequence[ClaimedItem], error: BaseException) -> None:
        seqs = [item.seq for item in items]
        _log.warning("prepare_failed", job_id=str(self._spec.job_id), seqs=seqs, exc_info=error)
        for item in items:
            self._ended.append((item, after_failure(error, fails=item.fails, uniform=self._tools.uniform)))


def _by_document(items: Sequence[ClaimedItem]) -> list[list[ClaimedItem]]:
    groups: dict[int, list[ClaimedItem]] = {}
    for item in items:
        groups.setdefault(item.document.doc, []).append(item)
    return list(groups.values())


def _close(document: DocumentPreparation, _fetched: Future[None]) -> None:
    document.close()
