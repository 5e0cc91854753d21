"""CUDA graphs for decode steps: one graph a batch size, replayed with new inputs.

A decode step of the real model launches some 1,500 small kernels; replaying a graph costs one launch. A step of n
rows uses the smallest captured size that holds it; the surplus rows read slot 0 and write to the scrap page, and
nobody reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipelines.engine.plan import StepPlan


@dataclass(frozen=True, kw_only=True)
class DecodeInputs:
    """Device tensors of a decode step: int64 `[rows]` slots, positions and cache places; int32 tables and lengths."""

    slots: torch.Tensor
    positions: torch.Tensor
    write: torch.Tensor
    tables: torch.Tensor
    lengths: torch.Tensor


def graph_sizes(slots: int) -> tuple[int, ...]:
    """Return the batch sizes to capture: powers of two up to 8, then every eighth, and `slots` itself."""
    sizes = {size for size in (1, 2, 4, 8) if size < slots} | set(range(16, slots, 8)) | {slots}
    return tuple(sorted(sizes))


class DecodeGraphs:
    """Captured decode steps. Capturing needs the device for itself: it is done once, before the engine starts."""

    def __init__(
        self, decode: Callable[[DecodeInputs], torch.Tensor], *, slots: int, pages: int, device: torch.device
    ) -> None:
        self._decode = decode
        self._device = device
        self._sizes = graph_sizes(slots)
        self._inputs = DecodeInputs(
            slots=torch.zeros(slots, dtype=torch.int64, device=device),
            positions=torch.zeros(slots, dtype=torch.int64, device=device),
            write=torch.zeros(slots, dtype=torch.int64, device=device),
            tables=torch.zeros(slots, pages, dtype=torch.int32, device=device),
            lengths=torch.ones(slots, dtype=torch.int32, device=device),
        )
        self._graphs: dict[int, tuple[Any, torch.Tensor]] = {}

    def capture(self) -> None:
        """Capture every size, the largest first, so that the smaller ones live in its memory pool."""
        pool = None
        for size in reversed(self._sizes):
            inputs = self._view(size)
            stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(stream):
                for _ in range(2):
                    # The first runs choose and load kernels, which may not happen inside a capture.
                    self._decode(inputs)
            torch.cuda.current_stream(self._device).wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                logits = self._decode(inputs)
            pool = pool or graph.pool()
            self._graphs[size] = (graph, logits)

    def run(self, plan: StepPlan) -> torch.Tensor:
        """Replay a decode-only step; returns its logits `[rows, vocabulary]`, valid until the next call."""
        rows, width = plan.decodes, plan.tables.shape[1]
        size = next(size for size in self._sizes if size >= rows)
        inputs = self._inputs
        for target, values in (
            (inputs.slots, plan.decode_slots),
            (inputs.positions, plan.positions),
            (inputs.write, plan.write),
            (inputs.lengths, plan.lengths.astype(np.int32)),
        ):
            target[:rows].copy_(torch.from_numpy(values).pin_memory(), non_blocking=True)
        tables = torch.from_numpy(np.ascontiguousarray(plan.tables, dtype=np.int32)).pin_memory()
        inputs.tables[:rows, :width].copy_(tables.to(self._device, non_blocking=True))
        if size > rows:
            inputs.slots[rows:size] = 0
            inputs.positions[rows:size] = 0
            inputs.write[rows:size] = 0
            inputs.lengths[rows:size] = 1
            inputs.tables[rows:size, 0] = 0
        graph, logits = self._graphs[size]
        graph.replay()
        return logits[:rows]

    def _view(self, size: int) -> DecodeInputs:
        inputs = self._inputs
        return DecodeInputs(
            slots=inputs.slots[:size],
            positions=inputs.positions[:size],
            write=inputs.write[:size],
            tables=inputs.tables[:size],
            lengths=inputs.lengths[:size],
        )
