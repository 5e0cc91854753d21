"""The attention back ends of GPUs, and the choice among all of them at start.

A Triton kernel decodes over the pages where they lie; torch's varlen attention or flash-attn prefills. One
conformance suite compares every back end with a plain softmax.
"""

# ruff: noqa: PLR0917 - the tensors of one attention call

from __future__ import annotations

import importlib.util
import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.engine.attention import Backend, PagedCache
from pipelines.engine.backends import PreparedStep, SdpaBackend, to_device
from pipelines.engine.errors import BadRequest
from pipelines.engine.plan import Ints, StepPlan


@dataclass(frozen=True, kw_only=True)
class _Paged:
    """Decoding rows as a kernel reads them: int32 `[rows, pages]` and `[rows]`."""

    tables: torch.Tensor
    lengths: torch.Tensor


class TritonBackend(SdpaBackend):
    """Decodes with a Triton kernel that reads the pages where they lie; prefills by gather + SDPA."""

    name = "triton"
    graphable = True

    def __init__(self, page_size: int) -> None:
        super().__init__(page_size)
        from pipelines.engine.triton_decode import paged_decode  # noqa: PLC0415 - triton is not everywhere

        self._kernel = paged_decode

    def decode_state(self, tables: torch.Tensor, lengths: torch.Tensor) -> PreparedStep:
        """See `Backend.decode_state`."""
        return PreparedStep(rows=len(lengths), decode=_Paged(tables=tables, lengths=lengths), prefill=None)

    def prepare_decode(self, plan: StepPlan, device: torch.device) -> Any:
        """Hand the kernel its tables."""
        return _Paged(
            tables=to_device(plan.tables[: plan.decodes].astype("int32"), device),
            lengths=to_device(plan.lengths[: plan.decodes].astype("int32"), device),
        )

    def decode(self, query: torch.Tensor, cache: PagedCache, state: Any, scale: float) -> torch.Tensor:
        """See `SdpaBackend.decode`."""
        return self._kernel(query, cache.keys, cache.values, state.tables, state.lengths, scale)


@dataclass(frozen=True, kw_only=True)
class _Packed:
    """Chunks end to end: cumulative int32 `[chunks + 1]`, the longest ones, and where their keys lie in the cache."""

    start: int
    queries: torch.Tensor
    keys: torch.Tensor
    longest_query: int
    longest_key: int
    places: torch.Tensor
    tables: torch.Tensor


class VarlenBackend(TritonBackend):
    """Prefills all chunks in one call of torch's `varlen_attn` (CUDA, torch 2.11 or newer) over gathered keys.

    torch 2.11 has neither block tables nor grouped queries there, so keys are gathered and their heads repeated: that
    costs bandwidth for a chunk, which is bound by arithmetic anyway, and works on every version.
    """

    name = "varlen+triton"

    def __init__(self, page_size: int) -> None:
        super().__init__(page_size)
        from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415 - not in every build of torch

        self._varlen: Any = varlen_attn
        # Causal, aligned at the lower right corner: the last query sees every key. Older versions say it otherwise.
        names = inspect.signature(varlen_attn).parameters
        self._causal = {"window_size": (-1, 0)} if "window_size" in names else {"is_causal": True}

    def prepare_prefill(self, plan: StepPlan, device: torch.device) -> _Packed:
        """Lay the chunks end to end."""
        lengths, queries = plan.lengths[plan.decodes :], plan.queries[plan.decodes :]
        size = self.page_size
        inside = np.arange(size, dtype=np.int64)
        places = [
            (table[: -(-int(keys) // size), None] * size + inside).reshape(-1)[:keys]
            for table, keys in zip(plan.tables[plan.decodes :], lengths, strict=True)
        ]
        return _Packed(
            start=plan.decodes,
            queries=to_device(_cumulative(queries), device),
            keys=to_device(_cumulative(lengths), device),
            longest_query=int(queries.max()),
            longest_key=int(lengths.max()),
            places=to_device(np.concatenate(places), device),
            tables=to_device(plan.tables[plan.decodes :].astype("int32"), device),
        )

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
        """See `SdpaBackend.prefill`."""
        del value
        repeat = query.shape[1] // key.shape[1]
        keys, values = (
            pages.flatten(0, 1).index_select(0, state.places).repeat_interleave(repeat, dim=1)
            for pages in (cache.keys, cache.values)
        )
        out[state.start :] = self._varlen(
            query[state.start :].contiguous(),
            keys,
            values,
            state.queries,
            state.keys,
            state.longest_query,
            state.longest_key,
            scale=scale,
            **self._causal,
        )


class FlashBackend(VarlenBackend):
    """flash-attn over block tables, for prefill and decoding; version 2 wants pages of a multiple of 256 tokens."""

    name = "flash-attn"

    def __init__(self, page_size: int) -> None:
        if page_size % 256:
            raise BadRequest(f"flash-attn needs pages of a multiple of 256 tokens, not {page_size}", param="page_size")
        SdpaBackend.__init__(self, page_size)
        import flash_attn  # noqa: PLC0415 - an extra

        self._flash: Any = flash_attn

    def decode(self, query: torch.Tensor, cache: PagedCache, state: Any, scale: float) -> torch.Tensor:
        """See `SdpaBackend.decode`."""
        done: torch.Tensor = self._flash.flash_attn_with_kvcache(
            query[:, None],
            cache.keys,
            cache.values,
            cache_seqlens=state.lengths,
            block_table=state.tables,
            softmax_scale=scale,
            causal=True,
        )
        return done[:, 0]

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
        """See `SdpaBackend.prefill`."""
        del key, value
        out[state.start :] = self._flash.flash_attn_varlen_func(
            query[state.start :].contiguous(),
            cache.keys,
            cache.values,
            cu_seqlens_q=state.queries,
            cu_seqlens_k=state.keys,
            max_seqlen_q=state.longest_query,
            max_seqlen_k=state.longest_key,
            softmax_scale=scale,
            causal=True,
            block_table=state.tables,
        )


def choose_backend(name: str, device: torch.device, dtype: torch.dtype, page_size: int) -> Backend:
    """Return the back end of this name; auto: the fastest that this device, dtype and installation have.

    `page_size` 0 means the back end's own: 256 for flash-attn, 32 on a CPU, else 16.
    """
    if name == "auto":
        name = _best(device, dtype)
    if name == "flash":
        return FlashBackend(page_size or 256)
    size = page_size or (32 if device.type == "cpu" else 16)
    if name == "varlen":
        return VarlenBackend(size)
    if name == "triton":
        return TritonBackend(size)
    return SdpaBackend(size)


def _best(device: torch.device, dtype: torch.dtype) -> str:
    if device.type != "cuda":
        return "sdpa"
    half = dtype in (torch.bfloat16, torch.float16)
    if half and importlib.util.find_spec("flash_attn") is not None:
        return "flash"
    if importlib.util.find_spec("triton") is None:
        return "sdpa"
    return "varlen" if half and importlib.util.find_spec("torch.nn.attention.varlen") is not None else "triton"


def _cumulative(values: Ints) -> NDArray[np.int32]:
    return np.concatenate([[0], values.cumsum()]).astype(np.int32)
