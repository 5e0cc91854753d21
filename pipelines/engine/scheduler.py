"""Decides what the next step computes. It never touches a tensor and never waits for one.

Every step takes one row for each decoding sequence, fills up to `max_rows` with prefill chunks, and gives the vision
tower up to `tile_budget` tiles. A sequence is admitted when pages for its whole prompt are free; when a running one
needs a page and none is left, the last in rank is sent back and recomputed later. A sequence whose prefix another
one is just computing waits for it instead of computing it twice.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from pipelines.engine.cache import EmbeddingLedger, PagePool
from pipelines.engine.packing import pack
from pipelines.engine.plan import Encode, StepPlan
from pipelines.engine.sequence import Sequence
from pipelines.engine.waiting import WaitingRoom


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The sizes that bound a step: slots (sequences), pages, rows of the language model, tiles of the vision tower."""

    slots: int
    pages: int
    page_size: int
    context: int
    max_rows: int = 2048
    tile_budget: int = 16
    embedding_tiles: int = 512


@dataclass(frozen=True, kw_only=True)
class Step:
    """A plan, and whom its rows belong to: `sampled` in the order of the plan's samples."""

    plan: StepPlan
    decoding: tuple[Sequence, ...]
    prefilling: tuple[tuple[Sequence, int], ...]
    encoding: tuple[tuple[Sequence, str, int], ...]
    sampled: tuple[Sequence, ...]


class Scheduler:
    """Waiting and running sequences over one page pool. One thread only."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.pool = PagePool(limits.pages)
        self.ledger = EmbeddingLedger(limits.embedding_tiles)
        self.waiting = WaitingRoom()
        self.running: list[Sequence] = []
        self.preemptions = 0
        self._slots = list(range(limits.slots - 1, -1, -1))
        width = -(-limits.context // limits.page_size)
        self._tables = np.zeros((limits.slots, width), dtype=np.int64)
        self._computing: dict[bytes, Sequence] = {}
        self._fresh: list[Sequence] = []
        self._scrub: list[int] = []

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        self.waiting.enter(sequence.group)
        self.waiting.add(sequence)

    def remove(self, sequence: Sequence, *, bad: bool = False) -> None:
        """Take a finished, cancelled or failed sequence out; `bad` makes its pages unfindable."""
        if sequence.done:
            return
        sequence.done = True
        if not self.waiting.remove(sequence):
            if bad:
                self.pool.forget(sequence.pages)
                self._scrub += self.pool.alone(sequence.pages)
            self._withdraw(sequence)
        self.waiting.charge(sequence.group, sequence.generated - sequence.given)
        self.waiting.leave(sequence.group)

    def preempt(self, sequence: Sequence) -> None:
        """Send a running sequence back; it keeps its tokens and is recomputed from them."""
        self._withdraw(sequence)
        sequence.computed = 0
        self.preemptions += 1
        self.waiting.add(sequence)

    def schedule(self) -> Step | None:
        """Return the next step, or None where nothing can be computed now. Changes nothing that a failed step needs."""
        decoding = self._take_decodes()
        self._admit()
        # Admission may have sent some of them back to make room for a higher priority.
        decoding = [each for each in decoding if each.token_on_device]
        candidates = [each for each in self.running if not each.token_on_device]
        candidates = [each for each in candidates if each.solo] or candidates
        encoding = self._take_tiles(candidates)
        prefilling: list[tuple[Sequence, int]] = []
        budget = max(self.limits.max_rows - len(decoding), 1)
        for sequence in candidates:
            size = min(self._ready_until(sequence) - sequence.computed, budget)
            if size > 0:
                prefilling.append((sequence, size))
                budget -= size
            if budget <= 0:
                break
        if not (decoding or prefilling or encoding):
            return None
        plan, sampled = pack(
            decoding,
            prefilling,
            tables=self._tables,
            page_size=self.limits.page_size,
            reset=[each for each, _ in prefilling if each in self._fresh],
        )
        plan = replace(
            plan, encode=tuple(item for _, item in encoding), drop=self.ledger.evict(), scrub=tuple(self._scrub)
        )
        self._scrub = []
        return Step(
            plan=plan,
            decoding=tuple(decoding),
            prefilling=tuple(prefilling),
            encoding=tuple((sequence, item.key, len(item.pixels)) for sequence, item in encoding),
            sampled=tuple(sampled),
        )

    def launched(self, step: Step) -> None:
        """Note that a step was handed to the device."""
        for _, key, count in step.encoding:
            self.ledger.launch(key, count)
        for sequence in step.decoding:
            sequence.computed += 1
        for sequence, size in step.prefilling:
            sequence.computed += size
            self.waiting.charge(sequence.group, size)
            self._commit(sequence)
            self._unpin(sequence, upto=sequence.computed)
            if sequence in self._fresh:
                self._fresh.remove(sequence)
        for sequence in step.sampled:
            sequence.pending += 1
            sequence.token_on_device = True

    def token(self, sequence: Sequence, token: int) -> None:
        """Note a token that was read from the device for a sequence which is not done."""
        sequence.pending -= 1
        sequence.tokens.append(token)
        if len(sequence.tokens) % self.limits.page_size == 0 and sequence.slot >= 0:
            self._commit(sequence)

    # -- pages ------------------------------------------------------------------------------------------------------

    def _take_decodes(self) -> list[Sequence]:
        """Return the decoding sequences, each with a page for its next token; preempts from the end to get one."""
        taken: list[Sequence] = []
        page_size = self.limits.page_size
        position = 0
        while position < len(self.running):
            sequence = self.running[position]
            position += 1
            if not sequence.token_on_device or sequence.generated + sequence.pending >= sequence.limit:
                continue
            if sequence.computed >= len(sequence.pages) * page_size:
                while not self.pool.available and self.running[-1] is not sequence:
                    self.preempt(self.running[-1])
                if not self.pool.available:
                    self.preempt(sequence)
                    continue
                self._extend(sequence, self.pool.allocate(1))
            taken.append(sequence)
        return taken

    def _extend(self, sequence: Sequence, pages: list[int]) -> None:
        start = len(sequence.pages)
        sequence.pages += pages
        self._tables[sequence.slot, start : len(sequence.pages)] = pages

    def _commit(self, sequence: Sequence) -> None:
        """Make the sequence's full pages of known tokens findable."""
        full = min(sequence.computed, len(sequence.tokens)) // self.limits.page_size
        if full > sequence.committed:
            hashes = sequence.page_hashes(self.limits.page_size)
            for number in range(sequence.committed, full):
                self.pool.commit(sequence.pages[number], hashes[number])
                if self._computing.get(hashes[number]) is sequence:
                    del self._computing[hashes[number]]
            sequence.committed = full

    def _withdraw(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        if sequence in self._fresh:
            self._fresh.remove(sequence)
        self.pool.release(sequence.pages)
        for key in [key for key, owner in self._computing.items() if owner is sequence]:
            del self._computing[key]
        self._unpin(sequence, upto=None)
        # A stale page in the table would be read (and masked): it might hold NaN, which no mask removes.
        self._tables[sequence.slot] = 0
        self._slots.append(sequence.slot)
        sequence.pages = []
        sequence.committed = 0
        sequence.slot = -1
        sequence.token_on_device = False

    # -- admission --------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        if not len(self.waiting):
            return
        if any(each.solo and not each.token_on_device for each in self.running):
            return
        for sequence in self.waiting.in_order():
            if sequence.pending:
                continue
            if not self._slots and not self._make_room(sequence, lambda: bool(self._slots)):
                return
            if sequence.solo and any(not each.token_on_device for each in self.running):
                continue
            outcome = self._try_admit(sequence)
            if outcome is False:
                return
            if outcome and sequence.solo:
                return

    def _try_admit(self, sequence: Sequence) -> bool | None:
        """Admit a sequence: True; False where pages lack; None where it waits for a prefix in the making."""
        page_size = self.limits.page_size
        # The last token is always computed: its logits are what is wanted.
        hashes = sequence.page_hashes(page_size)[: (len(sequence.tokens) - 1) // page_size]
        shared = self.pool.match(hashes)
        if len(shared) < len(hashes) and hashes[len(shared)] in self._computing:
            return None
        needed = -(-(len(sequence.tokens) + 1) // page_size) - len(shared)

        def enough() -> bool:
            return self.pool.available - self.pool.idle_among(shared) >= needed + len(self.running)

        if not enough() and not self._make_room(sequence, enough):
            return False
        self.waiting.remove(sequence)
        self.pool.share(shared)
        sequence.slot = self._slots.pop()
        self._extend(sequence, shared)
        self._extend(sequence, self.pool.allocate(needed))
        sequence.committed = len(shared)
        sequence.computed = len(shared) * page_size
        if not sequence.admissions:
            sequence.cached_tokens = sequence.computed
        sequence.admissions += 1
        for key in hashes[len(shared) :]:
            self._computing.setdefault(key, sequence)
        for image in sequence.images:
            if image.span.end > sequence.computed and image.key not in sequence.pinned:
                self.ledger.pin(image.key)
                sequence.pinned.add(image.key)
        bisect.insort(self.running, sequence, key=lambda each: each.rank)
        self._fresh.append(sequence)
        return True

    def _make_room(self, sequence: Sequence, enough: Callable[[], bool]) -> bool:
        """Preempt running sequences of a lower priority class until `enough()`; False where that does not suffice."""
        victims = [each for each in self.running if each.priority > sequence.priority]
        while victims and not enough():
            self.preempt(victims.pop())
        return enough()

    # -- vision -----------------------------------------------------------------------------------------------------

    def _take_tiles(self, candidates: Iterable[Sequence]) -> list[tuple[Sequence, Encode]]:
        taken: list[tuple[Sequence, Encode]] = []
        budget = self.limits.tile_budget
        seen: set[str] = set()
        for sequence in candidates:
            for image in sequence.images:
                if budget <= 0:
                    return taken
                if image.key in seen or image.key not in sequence.pinned or self.ledger.ready(image.key):
                    continue
                seen.add(image.key)
                first = self.ledger.launched(image.key)
                pixels = image.pixels[first : first + budget]
                if len(pixels):
                    taken.append((sequence, Encode(key=image.key, first=first, count=image.count, pixels=pixels)))
                    budget -= len(pixels)
        return taken

    def _ready_until(self, sequence: Sequence) -> int:
        """Return up to which token a prefill may go: the first image that is not encoded stops it."""
        for image in sequence.images:
            if image.span.end > sequence.computed and not self.ledger.ready(image.key):
                return max(image.span.start, sequence.computed)
        return len(sequence.tokens)

    def _unpin(self, sequence: Sequence, *, upto: int | None) -> None:
        if not sequence.pinned:
            return
        keep: set[str] = set()
        if upto is not None:
            keep = {image.key for image in sequence.images if image.span.end > upto}
        for key in sequence.pinned - keep:
            self.ledger.unpin(key)
        sequence.pinned &= keep
