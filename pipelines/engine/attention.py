"""Paged attention behind transformers' own modules: one registered function, and the back ends it may call.

The language model runs on packed rows (`[1, rows, ...]`, sequences end to end). Each layer writes the new keys and
values into the pages and hands the queries to the back end that was chosen at start. The step's description travels
through the modules as a keyword argument (`paged`), so no state is global.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from pipelines.engine.plan import StepPlan

NAME = "batchsight_paged"


@dataclass(frozen=True, kw_only=True)
class PagedCache:
    """Keys and values of one layer, each `[pages, page_size, kv_heads, head_dim]`."""

    keys: torch.Tensor
    values: torch.Tensor


class Backend(Protocol):
    """Computes attention of packed queries over pages. One instance an engine."""

    name: str

    def prepare(self, plan: StepPlan, device: torch.device) -> Any:
        """Turn a plan into what `attend` needs on every layer of this step."""

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cache: PagedCache, state: Any, scale: float
    ) -> torch.Tensor:
        """Return `[rows, heads, head_dim]`; `query` likewise, `key` and `value` (in the cache by now) with kv_heads."""


@dataclass(kw_only=True, slots=True)
class PagedStep:
    """One step as the attention layers see it. `write`: int64 `[rows]`, the cache place of each row."""

    backend: Backend
    state: Any
    write: torch.Tensor
    layers: list[PagedCache]


def paged_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001 - the interface's signature
    scaling: float,
    *,
    paged: PagedStep,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Write the step's keys and values, attend. Shapes as transformers calls it: `[1, heads, rows, head_dim]`."""
    cache = paged.layers[module.layer_idx]
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    cache.keys.flatten(0, 1).index_copy_(0, paged.write, key)
    cache.values.flatten(0, 1).index_copy_(0, paged.write, value)
    return paged.backend.attend(query, key, value, cache, paged.state, scaling)[None], None


def _no_mask(*_: Any, **__: Any) -> None:
    """Causality is the back end's: transformers builds no mask."""


AttentionInterface.register(NAME, paged_attention)
AttentionMaskInterface.register(NAME, _no_mask)


@dataclass(frozen=True, kw_only=True)
class _Bucket:
    """Decoding rows of similar length; `rows` None means all. `mask`: bool `[rows, 1, 1, keys]` or None."""

    rows: torch.Tensor | None
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


class SdpaBackend:
    """Gathers the pages and calls torch's scaled dot product attention: exact on every device, and the fallback."""

    name = "sdpa"
    # Rows are padded to the longest of their bucket; a new bucket begins where a row would be padded by more than this.
    _WASTE = 1.25

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size

    def prepare(self, plan: StepPlan, device: torch.device) -> tuple[list[_Bucket], list[_Chunk]]:
        """Group the decoding rows by length; describe the chunks."""
        buckets = self._buckets(plan, device) if plan.decodes else []
        chunks = []
        row = plan.decodes
        for number in range(plan.decodes, len(plan.lengths)):
            size, keys = int(plan.queries[number]), int(plan.lengths[number])
            pages = mask = None
            if size < keys:
                pages = torch.from_numpy(plan.tables[number, : -(-keys // self._page_size)].copy()).to(device)
                mask = torch.ones(size, keys, dtype=torch.bool, device=device).tril(keys - size)
            chunks.append(_Chunk(start=row, stop=row + size, pages=pages, keys=keys, mask=mask))
            row += size
        return buckets, chunks

    def _buckets(self, plan: StepPlan, device: torch.device) -> list[_Bucket]:
        lengths = plan.lengths[: plan.decodes]
        order = lengths.argsort(kind="stable")[::-1]
        buckets = []
        start = 0
        while start < len(order):
            longest = int(lengths[order[start]])
            stop = start + int((lengths[order[start:]] * self._WASTE >= longest).sum())
            rows = order[start:stop]
            width = -(-longest // self._page_size)
            mask = None
            if int(lengths[rows[-1]]) < longest:
                seen = torch.arange(longest)[None] < torch.from_numpy(lengths[rows].copy())[:, None]
                mask = seen[:, None, None, :].to(device)
            buckets.append(
                _Bucket(
                    rows=None
                    if len(rows) == plan.decodes and bool((rows[:-1] < rows[1:]).all())
                    else _index(rows, device),
                    pages=_index(plan.tables[rows, :width].reshape(-1), device),
                    count=len(rows),
                    mask=mask,
                    keys=longest,
                )
            )
            start = stop
        return buckets

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cache: PagedCache, state: Any, scale: float
    ) -> torch.Tensor:
        """See `Backend.attend`."""
        buckets, chunks = state
        heads, kv_heads = query.shape[1], key.shape[1]
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        for bucket in buckets:
            rows = query[: bucket.count] if bucket.rows is None else query.index_select(0, bucket.rows)
            keys, values = (
                pages.index_select(0, bucket.pages)
                .view(bucket.count, -1, *pages.shape[2:])[:, : bucket.keys]
                .transpose(1, 2)
                for pages in (cache.keys, cache.values)
            )
            # The query heads of one key/value head become its "query positions": no repeated keys, no causal mask.
            grouped = rows.reshape(bucket.count, kv_heads, heads // kv_heads, -1)
            done = scaled_dot_product_attention(grouped, keys, values, attn_mask=bucket.mask, scale=scale)
            done = done.reshape(bucket.count, heads, -1)
            if bucket.rows is None:
                out[: bucket.count] = done
            else:
                out.index_copy_(0, bucket.rows, done)
        for chunk in chunks:
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
                enable_gqa=heads != kv_heads,
            )
            out[chunk.start : chunk.stop] = done[0].transpose(0, 1)
        return out


def _index(values: Any, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(values.copy()).to(device, non_blocking=True)
