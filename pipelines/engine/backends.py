"""The attention back ends: gather + SDPA, a Triton kernel for decoding, torch's varlen attention, flash-attn.

`choose_backend` picks one at start. All of them meet `Backend`; one conformance suite compares them with a plain
softmax. They share the shape of a step: the decoding rows first, then the prefill chunks.
"""

# ruff: noqa: PLR0917 - the tensors of one attention call

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import scaled_dot_product_attention

from pipelines.engine.attention import PagedCache
from pipelines.engine.plan import StepPlan


@dataclass(frozen=True, kw_only=True)
class _Bucket:
    """Decoding rows of similar length. `mask`: bool `[rows, 1, 1, keys]`, None where all are equal."""

    rows: torch.Tensor
    pages: torch.Tensor
    count: int
    mask: torch.Tensor | None
    keys: int


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """One prefill chunk: its rows, its pages, and how many keys it sees."""

    start: int
    stop: int
    pages: torch.Tensor | None
    keys: int
    mask: torch.Tensor | None


@dataclass(frozen=True, kw_only=True)
class PreparedStep:
    """A prepared step. `decode` and `prefill` are each back end's own; `rows` are its decoding rows."""

    rows: int
    decode: Any
    prefill: Any


class SdpaBackend:
    """Gathers the pages and calls torch's scaled dot product attention: exact on every device, and the fallback."""

    name = "sdpa"
    graphable = False
    # Rows are padded to the longest of their bucket; a new bucket begins where a row would be padded by more than this.
    _WASTE = 1.25

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size

    def prepare(self, plan: StepPlan, device: torch.device) -> PreparedStep:
        """See `Backend.prepare`."""
        return PreparedStep(
            rows=plan.decodes,
            decode=self.prepare_decode(plan, device) if plan.decodes else None,
            prefill=self.prepare_prefill(plan, device) if len(plan.lengths) > plan.decodes else None,
        )

    def decode_state(self, tables: torch.Tensor, lengths: torch.Tensor) -> PreparedStep:
        """Not graphable: the grouping by length is the host's."""
        raise NotImplementedError("gather + SDPA needs the lengths on the host")

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cache: PagedCache, state: Any, scale: float
    ) -> torch.Tensor:
        """See `Backend.attend`."""
        if state.prefill is None:
            return self.decode(query, cache, state.decode, scale)
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        if state.rows:
            out[: state.rows] = self.decode(query[: state.rows], cache, state.decode, scale)
        self.prefill(query, key, value, cache, state.prefill, scale, out)
        return out

    def prepare_decode(self, plan: StepPlan, device: torch.device) -> Any:
        """Group the decoding rows by length."""
        lengths = plan.lengths[: plan.decodes]
        order = (-lengths).argsort(kind="stable")
        buckets = []
        start = 0
        while start < len(order):
            longest = int(lengths[order[start]])
            stop = start + int((lengths[order[start:]] * self._WASTE >= longest).sum())
            rows = order[start:stop]
            mask = None
            if int(lengths[rows[-1]]) < longest:
                seen = torch.arange(longest)[None] < torch.from_numpy(lengths[rows])[:, None]
                mask = seen[:, None, None, :].to(device)
            pages = plan.tables[rows, : -(-longest // self.page_size)].reshape(-1)
            buckets.append(
                _Bucket(
                    rows=to_device(rows, device),
                    pages=to_device(pages, device),
                    count=len(rows),
                    mask=mask,
                    keys=longest,
                )
            )
            start = stop
        return buckets

    def decode(self, query: torch.Tensor, cache: PagedCache, state: Any, scale: float) -> torch.Tensor:
        """Return `[rows, heads, head_dim]` of the decoding rows."""
        heads, kv_heads = query.shape[1], cache.keys.shape[2]
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        for bucket in state:
            keys, values = (
                pages.index_select(0, bucket.pages)
                .view(bucket.count, -1, *pages.shape[2:])[:, : bucket.keys]
                .transpose(1, 2)
                for pages in (cache.keys, cache.values)
            )
            # The query heads of one key/value head become its "query positions": no repeated keys, no causal mask.
            rows = query.index_select(0, bucket.rows).view(bucket.count, kv_heads, heads // kv_heads, -1)
            done = scaled_dot_product_attention(rows, keys, values, attn_mask=bucket.mask, scale=scale)
            out.index_copy_(0, bucket.rows, done.reshape(bucket.count, heads, -1))
        return out

    def prepare_prefill(self, plan: StepPlan, device: torch.device) -> Any:
        """Describe the chunks."""
        chunks = []
        row = plan.decodes
        for number in range(plan.decodes, len(plan.lengths)):
            size, keys = int(plan.queries[number]), int(plan.lengths[number])
            pages = mask = None
            if size < keys:
                pages = to_device(plan.tables[number, : -(-keys // self.page_size)], device)
                mask = torch.ones(size, keys, dtype=torch.bool, device=device).tril(keys - size)
            chunks.append(_Chunk(start=row, stop=row + size, pages=pages, keys=keys, mask=mask))
            row += size
        return chunks

    def prefill(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cache: PagedCache,
        state: Any,
        scale: float,
        out: torch.Tensor,
    ) -> None:
        """Fill the chunks\' rows of `out`."""
        for chunk in state:
            if chunk.pages is None:
                keys, values = key[chunk.start : chunk.stop], value[chunk.start : chunk.stop]
            else:
                keys, values = (
                    pages.index_select(0, chunk.pages).flatten(0, 1)[: chunk.keys]
                    for pages in (cache.keys, cache.values)
                )
            done = scaled_dot_product_attention(
                query[chunk.start : chunk.stop].transpose(0, 1)[None],
                keys.transpose(0, 1)[None],
                values.transpose(0, 1)[None],
                attn_mask=chunk.mask,
                is_causal=chunk.mask is None,
                scale=scale,
                enable_gqa=query.shape[1] != key.shape[1],
            )
            out[chunk.start : chunk.stop] = done[0].transpose(0, 1)


def to_device(values: NDArray[Any], device: torch.device) -> torch.Tensor:
    """Return a contiguous copy of `values` on the device."""
    return torch.from_numpy(np.ascontiguousarray(values)).to(device, non_blocking=True)
