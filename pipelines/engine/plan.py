"""What one step computes, as plain host data: the scheduler writes it, the runner (on every rank) carries it out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.engine.sampling import SamplingRow
from pipelines.engine.types import Uint8Tiles

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Encode:
    """Some tiles of one image for the vision tower: `[first, first + len(pixels))` of `count`."""

    key: str
    first: int
    count: int
    pixels: Uint8Tiles


@dataclass(frozen=True, kw_only=True)
class Visual:
    """Rows `[row, row + length)` of the step take the visual tokens `[offset, offset + length)` of an image."""

    key: str
    row: int
    offset: int
    length: int


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """One step over packed rows: first one row for each decoding sequence, then the prefill chunks.

    tokens: int64 `[rows]`; -1 where the row's token is the last one sampled in its slot (`decode_slots`).
    positions, write: int64 `[rows]`; position in the sequence, and the cache place `page * page_size + offset`.
    lengths: int64 `[sequences]`; keys each sequence sees after the step. queries: its rows in this step.
    tables: int64 `[sequences, pages]`; padded with 0.
    sample: int64 `[samples]`; rows whose logits are sampled, with `sample_slots` and `sampling` beside.
    reset: for each newly admitted sequence with a penalty, its slot and the tokens that the penalty covers.
    drop: images whose embeddings are no longer needed. scrub: pages to be zeroed, for they may hold NaN.
    """

    tokens: Ints
    positions: Ints
    write: Ints
    lengths: Ints
    queries: Ints
    tables: Ints
    decodes: int
    decode_slots: Ints
    sample: Ints
    sample_slots: Ints
    sampling: tuple[SamplingRow, ...]
    reset: tuple[tuple[int, tuple[int, ...]], ...] = ()
    encode: tuple[Encode, ...] = ()
    visual: tuple[Visual, ...] = ()
    drop: tuple[str, ...] = ()
    scrub: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        """Rows of the language model."""
        return len(self.tokens)
