"""Joins the model's small steps on a GPU: a norm in one kernel, one matmul for queries, keys, values.

The arithmetic stays that of the native modules, whose place these take after loading; on a CPU the native modules run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pipelines.engine.attention import PagedStep
from pipelines.engine.quantize import FP8, Fp8Linear
from pipelines.engine.triton_fused import rms_norm, rotate_and_write, silu_gate


def fuse(model: Any) -> None:
    """Replace the norms of the model, and attention and feed-forward of its language layers.

    int8 layers keep their matmuls apart. The tower's matmuls are large enough to stand alone, but its four norms a
    layer would read and write their rows a dozen times.
    """
    for layer in model.model.vision_tower.encoder.layer:
        layer.layernorm_before = FusedNorm(layer.layernorm_before)
        layer.layernorm_after = FusedNorm(layer.layernorm_after)
        for name in ("q_norm", "k_norm"):
            norm = getattr(layer.attention, name)
            if not isinstance(norm, nn.Identity):
                setattr(layer.attention, name, FusedNorm(norm))
    text = model.model.language_model
    text.norm = FusedNorm(text.norm)
    for layer in text.layers:
        layer.input_layernorm = FusedNorm(layer.input_layernorm)
        layer.post_attention_layernorm = FusedNorm(layer.post_attention_layernorm)
        attention, mlp = layer.self_attn, layer.mlp
        if (packed := join([attention.q_proj, attention.k_proj, attention.v_proj])) is not None:
            layer.self_attn = FusedAttention(attention, packed)
        if (packed := join([mlp.gate_proj, mlp.up_proj])) is not None:
            layer.mlp = FusedMlp(packed, mlp.down_proj)


def join(layers: list[Any]) -> nn.Module | None:
    """Return one layer with the outputs of all, or None where they are of a kind that cannot be joined."""
    outputs = sum(layer.out_features for layer in layers)
    if all(type(layer) is nn.Linear for layer in layers):
        with torch.device("meta"):
            plain = nn.Linear(layers[0].in_features, outputs, bias=False)
        plain.weight = nn.Parameter(torch.cat([layer.weight for layer in layers]), requires_grad=False)
        return plain
    if all(isinstance(layer, Fp8Linear) for layer in layers):
        with torch.device("meta"):
            quantised = Fp8Linear(layers[0].in_features, outputs)
        # torch joins bytes, not fp8 values.
        quantised.weight = torch.cat([layer.weight.view(torch.uint8) for layer in layers]).view(FP8)
        quantised.scale = torch.cat([layer.scale for layer in layers])
        return quantised
    return None


class FusedNorm(nn.Module):
    """A root mean square norm in one kernel."""

    def __init__(self, native: Any) -> None:
        super().__init__()
        self.weight = native.weight
        self._eps = float(native.variance_epsilon)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """`[..., hidden]` to the same."""
        return rms_norm(values, self.weight, self._eps)


class FusedMlp(nn.Module):
    """The gated feed-forward with one matmul in and one out."""

    def __init__(self, packed: nn.Module, down: nn.Module) -> None:
        super().__init__()
        self.packed = packed
        self.down_proj = down

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """`[..., hidden]` to the same."""
        out: torch.Tensor = self.down_proj(silu_gate(self.packed(values)))
        return out


class FusedAttention(nn.Module):
    """Attention over pages with one matmul in; takes what the native decoder layer hands to its own."""

    def __init__(self, native: Any, packed: nn.Module) -> None:
        super().__init__()
        self.packed = packed
        self.o_proj = native.o_proj
        self.layer_idx = int(native.layer_idx)
        self._head = int(native.head_dim)
        self._scale = float(native.scaling)

    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        paged: PagedStep,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """`[1, rows, hidden]` to the same."""
        cache = paged.layers[self.layer_idx]
        cos, sin = position_embeddings
        packed = self.packed(hidden_states)[0].view(hidden_states.shape[1], -1, self._head)
        rotate_and_write(packed, cos[0], sin[0], cache.keys, cache.values, paged.write)
        kv = cache.keys.shape[2]
        query, key, value = packed.split([packed.shape[1] - 2 * kv, kv, kv], dim=1)
        out = paged.backend.attend(query, key, value, cache, paged.state, self._scale)
        return self.o_proj(out.reshape(1, len(out), -1)), None
