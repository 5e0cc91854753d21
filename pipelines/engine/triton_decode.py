"""A Triton kernel for decoding: one query a sequence against its pages, split over the keys (flash-decoding).

Dao et al., "Flash-Decoding for long-context inference" (2023): each split keeps its own running softmax, and the
partial results are joined by their log-sum-exp. The query heads of one key/value head are handled together, so that
each page is read once. Nothing here waits for the host: the whole call can be captured in a CUDA graph. With the
environment variable TRITON_INTERPRET=1 the kernel runs on a CPU, which is how it is tested without a GPU.
"""

# ruff: noqa: PLR0917 - the arguments of a kernel

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language

# Its functions exist inside kernels alone, where mypy has nothing to say.
tl: Any = triton.language

_BLOCK = 64
_SPLITS = 8


@triton.jit
def _decode_kernel(  # type: ignore[no-untyped-def]
    query,
    keys,
    values,
    tables,
    lengths,
    partial,
    joint,
    scale,
    width,
    heads,
    HEAD: tl.constexpr,  # noqa: N803 - constants of the kernel
    HEAD_PAD: tl.constexpr,  # noqa: N803
    GROUP: tl.constexpr,  # noqa: N803
    GROUP_PAD: tl.constexpr,  # noqa: N803
    KV: tl.constexpr,  # noqa: N803
    PAGE: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
    SPLITS: tl.constexpr,  # noqa: N803
):
    row = tl.program_id(0)
    kv = tl.program_id(1)
    split = tl.program_id(2)
    length = tl.load(lengths + row)
    share = tl.cdiv(tl.cdiv(length, SPLITS), BLOCK) * BLOCK
    start = split * share
    stop = tl.minimum(start + share, length)
    group = tl.arange(0, GROUP_PAD)
    feature = tl.arange(0, HEAD_PAD)
    inside = (group[:, None] < GROUP) & (feature[None, :] < HEAD)
    at = (row * heads + kv * GROUP + group[:, None]) * HEAD + feature[None, :]
    q = tl.load(query + at, mask=inside, other=0.0)
    best = tl.full([GROUP_PAD], float("-inf"), tl.float32)
    total = tl.zeros([GROUP_PAD], tl.float32)
    result = tl.zeros([GROUP_PAD, HEAD_PAD], tl.float32)
    for first in range(start, stop, BLOCK):
        place = first + tl.arange(0, BLOCK)
        seen = place < stop
        page = tl.load(tables + row * width + place // PAGE, mask=seen, other=0).to(tl.int64)
        token = (page * PAGE + place % PAGE) * KV + kv
        where = token[:, None] * HEAD + feature[None, :]
        there = seen[:, None] & (feature[None, :] < HEAD)
        k = tl.load(keys + where, mask=there, other=0.0)
        score = tl.dot(q, tl.trans(k)).to(tl.float32) * scale
        score = tl.where(seen[None, :], score, float("-inf"))
        higher = tl.maximum(best, tl.max(score, axis=1))
        fade = tl.exp(best - higher)
        weight = tl.exp(score - higher[:, None])
        total = total * fade + tl.sum(weight, axis=1)
        v = tl.load(values + where, mask=there, other=0.0)
        result = result * fade[:, None] + tl.dot(weight.to(v.dtype), v).to(tl.float32)
        best = higher
    used = total > 0.0
    result = result / tl.where(used, total, 1.0)[:, None]
    out = (row * heads + kv * GROUP + group) * SPLITS + split
    tl.store(partial + out[:, None] * HEAD + feature[None, :], result, mask=inside)
    tl.store(joint + out, tl.where(used, best + tl.log(tl.where(used, total, 1.0)), float("-inf")), mask=group < GROUP)


def paged_decode(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tables: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Return `[rows, heads, head_dim]` in the query's dtype.

    Args:
        query: `[rows, heads, head_dim]`.
        keys, values: `[pages, page_size, kv_heads, head_dim]`, contiguous.
        tables: int32 `[rows, pages of the longest]`.
        lengths: int32 `[rows]`, keys of each row, at least one.
        scale: of the scores.
    """
    rows, heads, head = query.shape
    kv = keys.shape[2]
    query = query.contiguous()
    partial = torch.empty(rows, heads, _SPLITS, head, dtype=torch.float32, device=query.device)
    joint = torch.empty(rows, heads, _SPLITS, dtype=torch.float32, device=query.device)
    launch: Any = _decode_kernel[(rows, kv, _SPLITS)]
    launch(
        query,
        keys,
        values,
        tables,
        lengths,
        partial,
        joint,
        scale,
        tables.shape[1],
        heads,
        HEAD=head,
        HEAD_PAD=max(16, triton.next_power_of_2(head)),
        GROUP=heads // kv,
        GROUP_PAD=max(16, triton.next_power_of_2(heads // kv)),
        KV=kv,
        PAGE=keys.shape[1],
        BLOCK=_BLOCK,
        SPLITS=_SPLITS,
    )
    weight = (joint - joint.amax(-1, keepdim=True)).exp()
    weight = weight / weight.sum(-1, keepdim=True)
    return (partial * weight[..., None]).sum(2).to(query.dtype)
