"""8-bit weights for the linear layers of the language model: int8 by bitsandbytes, fp8 by torch's own scaled matmul.

The projector and the head keep their precision, and so does the vision tower unless `fp8_vision` is asked for and its
visual tokens stay near: the model card warns that a quantised InternViT-6B stops seeing. 4 bits are refused everywhere.
A layer is replaced while the model is still empty, and takes its
weight through `load_weight`, so that no full-precision copy of the model ever exists on the device.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from pipelines.engine.errors import CheckpointError

_log = logging.getLogger(__name__)

FP8 = torch.float8_e4m3fn
# Rowwise e4m3 moves one product by about 4 %; a tower that adds up to more than this has outliers that fp8 cannot hold.
VISION_LIMIT = 0.1
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


def quantize_vision(tower: nn.Module, probe: Callable[[], torch.Tensor], *, limit: float = VISION_LIMIT) -> float:
    """Make the tower's layers fp8 where it still sees the same; returns the relative error of `probe`'s visual tokens.

    Args:
        tower: the vision tower, loaded.
        probe: computes the visual tokens of some tiles with the tower as it is.
        limit: above this relative error the tower is put back as it was.
    """
    wanted = probe()
    plain = {name: module for name, module in tower.named_modules() if isinstance(module, nn.Linear)}
    for name, module in plain.items():
        tower.set_submodule(name, Fp8Linear.of(module))
    error = float((probe() - wanted).float().norm() / wanted.float().norm())
    if not error <= limit:
        for name, module in plain.items():
            tower.set_submodule(name, module)
        _log.warning("engine.vision_stays_plain", extra={"relative_error": error, "limit": limit})
    return error


def quantize_rows(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return fp8 values and float32 scales `[rows, 1]`, so that values * scale is near the input, row by row."""
    scale = values.abs().amax(-1, keepdim=True).float().clamp(min=1e-12) / _LARGEST
    return (values.float() / scale).clamp(-_LARGEST, _LARGEST).to(FP8), scale


def emulate(values: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """What the scaled matmul computes, in plain arithmetic: both sides fp8 with a scale a row, sums in float32."""
    quantised, row_scale = quantize_rows(values)
    return (linear(quantised.float(), weight.float()) * row_scale * scale.T).to(values.dtype)


class Fp8Linear(nn.Module):
    """A linear layer whose weight is fp8 (e4m3) with one scale an output row; activations a row each.

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
        self.bias: torch.Tensor | None = None

    @classmethod
    def of(cls, plain: nn.Linear) -> Fp8Linear:
        """Return the quantised form of a layer that is loaded."""
        made = cls(plain.in_features, plain.out_features)
        made.load_weight("weight", plain.weight)
        made.bias = plain.bias
        return made

    def load_weight(self, leaf: str, tensor: torch.Tensor) -> None:
        """Quantise the weight that `build_model` hands over."""
        if leaf != "weight":
            raise CheckpointError(f"a quantised layer has no {leaf}")
        self.weight, self.scale = quantize_rows(tensor)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """`[..., in]` to `[..., out]`, in the input's dtype."""
        done = self._product(values.flatten(0, -2)).view(*values.shape[:-1], -1)
        return done if self.bias is None else done + self.bias

    def _product(self, flat: torch.Tensor) -> torch.Tensor:
        if not _has_scaled_mm(flat.device):
            return emulate(flat, self.weight, self.scale)
        quantised, row_scale = quantize_rows(flat)
        # torch has no public name for it yet.
        return torch._scaled_mm(quantised, self.weight.T, row_scale, self.scale.T, out_dtype=flat.dtype)


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
