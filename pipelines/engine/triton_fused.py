"""Triton kernels that join the small steps around the language model's matmuls.

In the native modules a norm is six kernels, the rotary positions eight, the gate two; on a GPU a decode step of the
real model would spend a fifth of its time on launching and re-reading. Each function here is one kernel. They run on
a CPU under TRITON_INTERPRET=1, which is how they are tested without a GPU.
"""

# ruff: noqa: PLR0917, N803 - the arguments of kernels

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language

# Its functions exist inside kernels alone, where mypy has nothing to say.
tl: Any = triton.language


@triton.jit
def _norm_kernel(values, weight, out, eps, WIDTH: tl.constexpr, PAD: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0)
    column = tl.arange(0, PAD)
    inside = column < WIDTH
    x = tl.load(values + row * WIDTH + column, mask=inside, other=0.0)
    wide = x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=0) / WIDTH + eps)
    # Rounded before the weight, as the native module does.
    normed = (wide * scale).to(x.dtype).to(tl.float32)
    w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * WIDTH + column, (normed * w).to(x.dtype), mask=inside)


def rms_norm(values: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Root mean square norm over the last side (Zhang and Sennrich, 2019), in the dtype of `values`."""
    values = values.contiguous()
    out = torch.empty_like(values)
    width = values.shape[-1]
    launch: Any = _norm_kernel[(values.numel() // width,)]
    launch(values, weight, out, eps, WIDTH=width, PAD=triton.next_power_of_2(width))
    return out


@triton.jit
def _gate_kernel(both, out, FFN: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < FFN
    gate = tl.load(both + row * 2 * FFN + column, mask=inside, other=0.0)
    up = tl.load(both + row * 2 * FFN + FFN + column, mask=inside, other=0.0)
    wide = gate.to(tl.float32)
    silu = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype).to(tl.float32)
    tl.store(out + row * FFN + column, (silu * up.to(tl.float32)).to(gate.dtype), mask=inside)


def silu_gate(both: torch.Tensor) -> torch.Tensor:
    """`[..., 2 * ffn]` (gate, then up) to `silu(gate) * up`, `[..., ffn]`."""
    both = both.contiguous()
    ffn = both.shape[-1] // 2
    out = both.new_empty(*both.shape[:-1], ffn)
    block = min(1024, triton.next_power_of_2(ffn))
    launch: Any = _gate_kernel[(both.numel() // (2 * ffn), triton.cdiv(ffn, block))]
    launch(both, out, FFN=ffn, BLOCK=block)
    return out


@triton.jit
def _rotate_kernel(  # type: ignore[no-untyped-def]
    packed,
    cos,
    sin,
    keys,
    values,
    write,
    HEADS: tl.constexpr,
    KV: tl.constexpr,
    HEAD: tl.constexpr,
    PAD: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    half: tl.constexpr = HEAD // 2
    feature = tl.arange(0, PAD)
    inside = feature < HEAD
    other = tl.where(feature < half, feature + half, feature - half)
    base = packed + (row * (HEADS + 2 * KV) + head) * HEAD
    x = tl.load(base + feature, mask=inside, other=0.0)
    place = tl.load(write + row)
    if head >= HEADS + KV:
        tl.store(values + (place * KV + head - HEADS - KV) * HEAD + feature, x, mask=inside)
    else:
        turned = tl.load(base + other, mask=inside, other=0.0).to(tl.float32)
        turned = tl.where(feature < half, -turned, turned)
        c = tl.load(cos + row * HEAD + feature, mask=inside, other=0.0).to(tl.float32)
        s = tl.load(sin + row * HEAD + feature, mask=inside, other=0.0).to(tl.float32)
        y = (x.to(tl.float32) * c + turned * s).to(x.dtype)
        # Both halves have been read by this program before either is written.
        tl.debug_barrier()
        tl.store(base + feature, y, mask=inside)
        if head >= HEADS:
            tl.store(keys + (place * KV + head - HEADS) * HEAD + feature, y, mask=inside)


def rotate_and_write(
    packed: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    write: torch.Tensor,
) -> None:
    """Turn queries and keys by their positions, in place, and write keys and values to their cache places.

    Args:
        packed: `[rows, heads + 2 * kv_heads, head_dim]`, contiguous: queries, keys, values.
        cos, sin: `[rows, head_dim]`, the halves repeated.
        keys, values: the layer's pages, `[pages, page_size, kv_heads, head_dim]`.
        write: int64 `[rows]`.
    """
    rows, total, head = packed.shape
    kv = keys.shape[2]
    launch: Any = _rotate_kernel[(rows, total)]
    launch(
        packed,
        cos.contiguous(),
        sin.contiguous(),
        keys,
        values,
        write,
        HEADS=total - 2 * kv,
        KV=kv,
        HEAD=head,
        PAD=triton.next_power_of_2(head),
    )
