"""8-bit weights for the linear layers of the language model: int8 by bitsandbytes, fp8 by torch's own scaled matmul.

The vision tower, the projector and the head keep their precision: the model card warns that a quantised InternViT-6B
stops seeing, and 4 bits are refused everywhere. A layer is replaced while the model is still empty, and takes its
weight through `load_weight`, so that no full-precision copy of the model ever exists on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from pipelines.engine.errors import CheckpointError

FP8 = torch.float8_e4m3fn
_LARGEST = torch.finfo(FP8).max


def edit_for(quantization: str, device: torch.device) -> Callable[[nn.Module], None] | None:
    """Return what `build_model` does to the empty model; None for plain weights, `CheckpointError` for others."""
    if quantization == "none":
        return None
    if quantization == "fp8":
        return lambda model: _replace(model, Fp8Linear)
    if quantization == "int8":
        if device.type != "cuda":
            raise CheckpointError("int8 (bitsandbytes) needs a GPU")
        return lambda model: _replace(model, Int8Linear)
    raise CheckpointError(
        f"quantization {quantization!r} is refused: 4-bit weights make InternViT-6B blind, and only int8 and fp8 of "
        "the language model are supported"
    )


def _replace(model: Any, kind: Callable[[int, int], nn.Module]) -> None:
    for layer in model.model.language_model.layers:
        for block in (layer.self_attn, layer.mlp):
            for name, child in list(block.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(block, name, kind(child.in_features, child.out_features))


def quantize_rows(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return fp8 values and float32 scales `[rows, 1]`, so that values * scale is near the input, row by row."""
    scale = values.abs().amax(-1, keepdim=True).float().clamp(min=1e-12) / _LARGEST
    return (values.float() / scale).clamp(-_LARGEST, _LARGEST).to(FP8), scale


def emulate(values: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """What the scaled matmul computes, in plain arithmetic: both sides fp8 with a scale a row, sums in float32."""
    quantised, row_scale = quantize_rows(values)
    return (linear(quantised.float(), weight.float()) * row_scale * scale.T).to(values.dtype)


class Fp8Linear(nn.Module):
    """A linear layer without bias whose weight is fp8 (e4m3) with one scale an output row; activations a row each.

    On a GPU of compute capability 8.9 or newer it calls `torch._scaled_mm`; elsewhere `emulate`, which gives the same
    numbers slowly.
    """

    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.register_buffer("weight", torch.empty(out_features, in_features, dtype=FP8))
        self.register_buffer("scale", torch.empty(out_features, 1, dtype=torch.float32))

    def load_weight(self, leaf: str, tensor: torch.Tensor) -> None:
        """Quantise the weight that `build_model` hands over."""
        if leaf != "weight":
            raise CheckpointError(f"a quantised layer has no {leaf}")
        self.weight, self.scale = quantize_rows(tensor)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """`[..., in]` to `[..., out]`, in the input's dtype."""
        flat = values.flatten(0, -2)
        if not _has_scaled_mm(values.device):
            return emulate(flat, self.weight, self.scale).view(*values.shape[:-1], -1)
        quantised, row_scale = quantize_rows(flat)
        done = torch._scaled_mm(
            quantised, self.weight.T, scale_a=row_scale, scale_b=self.scale.T, out_dtype=values.dtype
        )
        return done.view(*values.shape[:-1], -1)


def _has_scaled_mm(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


class Int8Linear(nn.Module):
    """A linear layer in bitsandbytes' LLM.int8: int8 rows, and a 16-bit path for outlying features (threshold 6)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.inner: Any = None

    def load_weight(self, leaf: str, tensor: torch.Tensor) -> None:
        """Quantise the weight that `build_model` hands over; moving it to the device is what quantises it."""
        import bitsandbytes  # noqa: PLC0415 - an extra

        if leaf != "weight":
            raise CheckpointError(f"a quantised layer has no {leaf}")
        inner = bitsandbytes.nn.Linear8bitLt(
            self.in_features, self.out_features, bias=False, has_fp16_weights=False, threshold=6.0
        )
        inner.weight = bitsandbytes.nn.Int8Params(
            tensor.to("cpu", torch.float16), requires_grad=False, has_fp16_weights=False
        )
        self.inner = inner.to(tensor.device)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """`[..., in]` to `[..., out]`, in the input's dtype."""
        done: torch.Tensor = self.inner(values)
        return done
