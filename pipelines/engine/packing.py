"""Writes the plan of a step: rows of many sequences end to end, as arrays."""

from __future__ import annotations

from collections.abc import Sequence as Many

import numpy as np

from pipelines.engine.plan import Ints, StepPlan, Visual
from pipelines.engine.sampling import row as sampling_row
from pipelines.engine.sequence import Image, Sequence


def pack(
    decoding: Many[Sequence],
    prefilling: Many[tuple[Sequence, int]],
    *,
    tables: Ints,
    page_size: int,
    reset: Many[Sequence],
) -> tuple[StepPlan, list[Sequence]]:
    """Return the plan of a step, without its vision part, and the sequences that it samples.

    Args:
        decoding: sequences that take one row each.
        prefilling: sequences with the number of tokens that each takes next.
        tables: int64 `[slots, pages]`, the pages of each slot.
        page_size: tokens a page.
        reset: those whose penalty is to be set up.
    """
    slots = _ints([each.slot for each in decoding])
    at = _ints([each.computed for each in decoding])
    tokens = [np.full(len(decoding), -1, dtype=np.int64)]
    positions = [at]
    write = [tables[slots, at // page_size] * page_size + at % page_size]
    lengths = (at + 1).tolist()
    queries = [1] * len(decoding)
    sampled = list(decoding)
    sample = list(range(len(decoding)))
    visual: list[Visual] = []
    row = len(decoding)
    for sequence, size in prefilling:
        start, stop = sequence.computed, sequence.computed + size
        where = np.arange(start, stop, dtype=np.int64)
        tokens.append(_ints(sequence.tokens[start:stop]))
        positions.append(where)
        write.append(tables[sequence.slot, where // page_size] * page_size + where % page_size)
        lengths.append(stop)
        queries.append(size)
        visual += _visual(sequence.images, start, stop, row)
        row += size
        if stop == len(sequence.tokens):
            sampled.append(sequence)
            sample.append(row - 1)
    everyone = _ints([each.slot for each in decoding] + [each.slot for each, _ in prefilling])
    plan = StepPlan(
        tokens=np.concatenate(tokens),
        positions=np.concatenate(positions),
        write=np.concatenate(write),
        lengths=_ints(lengths),
        queries=_ints(queries),
        tables=tables[everyone, : -(-max(lengths, default=0) // page_size)],
        decodes=len(decoding),
        decode_slots=slots,
        sample=_ints(sample),
        sample_slots=_ints([each.slot for each in sampled]),
        sampling=tuple(
            sampling_row(each.params, seed=each.seed, index=each.generated + each.pending) for each in sampled
        ),
        reset=tuple(
            (each.slot, tuple(each.tokens[each.prompt_length :]))
            for each in reset
            if each.params.repetition_penalty != 1.0
        ),
        visual=tuple(visual),
    )
    return plan, sampled


def pack_prefill(ids: Many[int], images: Many[Image], pages: Many[int], page_size: int) -> StepPlan:
    """Return the plan of one whole prompt whose every row is sampled (for its logits)."""
    where = np.arange(len(ids), dtype=np.int64)
    table = _ints(pages)
    return StepPlan(
        tokens=_ints(ids),
        positions=where,
        write=table[where // page_size] * page_size + where % page_size,
        lengths=_ints([len(ids)]),
        queries=_ints([len(ids)]),
        tables=table[None],
        decodes=0,
        decode_slots=_ints([]),
        sample=where,
        sample_slots=_ints([]),
        sampling=(),
        visual=tuple(_visual(images, 0, len(ids), 0)),
    )


def _visual(images: Many[Image], start: int, stop: int, row: int) -> list[Visual]:
    parts = []
    for image in images:
        first, last = max(image.span.start, start), min(image.span.end, stop)
        if first < last:
            offset = first - image.span.start
            parts.append(Visual(key=image.key, row=row + first - start, offset=offset, length=last - first))
    return parts


def _ints(values: Many[int]) -> Ints:
    return np.asarray(values, dtype=np.int64)
