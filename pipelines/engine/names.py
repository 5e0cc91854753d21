"""Which tensors a checkpoint must hold, their shapes, and how the original names become the native ones.

The table is InternVL-Chat-V1-5's: original names from `modeling_intern_vit.py`, `modeling_internlm2.py` and
`modeling_internvl_chat.py` of github OpenGVLab/InternVL, native ones from transformers' `modeling_internvl.py` and
`modeling_llama.py`. Two original tensors hold several native ones: the vision `qkv` (three equal chunks of the first
dimension) and InternLM2's `wqkv` (interleaved by key/value head, no rotary permutation).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipelines.engine.config import ModelConfig

Shape = tuple[int, ...]

_VISION = "model.vision_tower."
_TEXT = "model.language_model."
_PROJECTOR = "model.multi_modal_projector."

_FIXED = {
    "vision_model.embeddings.class_embedding": _VISION + "embeddings.cls_token",
    "vision_model.embeddings.position_embedding": _VISION + "embeddings.position_embeddings",
    "vision_model.embeddings.patch_embedding.weight": _VISION + "embeddings.patch_embeddings.projection.weight",
    "vision_model.embeddings.patch_embedding.bias": _VISION + "embeddings.patch_embeddings.projection.bias",
    "language_model.model.tok_embeddings.weight": _TEXT + "embed_tokens.weight",
    "language_model.model.norm.weight": _TEXT + "norm.weight",
    "language_model.output.weight": "lm_head.weight",
    "mlp1.0.weight": _PROJECTOR + "layer_norm.weight",
    "mlp1.0.bias": _PROJECTOR + "layer_norm.bias",
    "mlp1.1.weight": _PROJECTOR + "linear_1.weight",
    "mlp1.1.bias": _PROJECTOR + "linear_1.bias",
    "mlp1.3.weight": _PROJECTOR + "linear_2.weight",
    "mlp1.3.bias": _PROJECTOR + "linear_2.bias",
}
_VISION_LAYER = {
    "attn.q_norm.weight": "attention.q_norm.weight",
    "attn.k_norm.weight": "attention.k_norm.weight",
    "attn.proj.weight": "attention.projection_layer.weight",
    "attn.proj.bias": "attention.projection_layer.bias",
    "norm1.weight": "layernorm_before.weight",
    "norm2.weight": "layernorm_after.weight",
    "ls1": "lambda_1",
    "ls2": "lambda_2",
    "mlp.fc1.weight": "mlp.fc1.weight",
    "mlp.fc1.bias": "mlp.fc1.bias",
    "mlp.fc2.weight": "mlp.fc2.weight",
    "mlp.fc2.bias": "mlp.fc2.bias",
}
_TEXT_LAYER = {
    "attention.wo.weight": "self_attn.o_proj.weight",
    "feed_forward.w1.weight": "mlp.gate_proj.weight",
    "feed_forward.w3.weight": "mlp.up_proj.weight",
    "feed_forward.w2.weight": "mlp.down_proj.weight",
    "attention_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
}
_VISION_NAME = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.(.+)")
_TEXT_NAME = re.compile(r"language_model\.model\.layers\.(\d+)\.(.+)")


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where an original tensor goes. `split` is how it is cut: None, `chunks` (thirds) or `heads` (wqkv)."""

    names: tuple[str, ...]
    split: str | None = None


def target(original: str) -> Target | None:
    """Return the native name or names of an original tensor; None for a tensor the model does not have."""
    if fixed := _FIXED.get(original):
        return Target(names=(fixed,))
    if match := _VISION_NAME.fullmatch(original):
        at, rest = f"{_VISION}encoder.layer.{match[1]}.", match[2]
        if rest in ("attn.qkv.weight", "attn.qkv.bias"):
            kind = rest.rsplit(".", 1)[1]
            return Target(names=tuple(f"{at}attention.{part}_proj.{kind}" for part in "qkv"), split="chunks")
        return Target(names=(at + _VISION_LAYER[rest],)) if rest in _VISION_LAYER else None
    if match := _TEXT_NAME.fullmatch(original):
        at, rest = f"{_TEXT}layers.{match[1]}.", match[2]
        if rest == "attention.wqkv.weight":
            return Target(names=tuple(f"{at}self_attn.{part}_proj.weight" for part in "qkv"), split="heads")
        return Target(names=(at + _TEXT_LAYER[rest],)) if rest in _TEXT_LAYER else None
    return None


def native_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Return the shape of every native tensor that this configuration needs, no more and no fewer."""
    vision, text = config.vision, config.text
    kv = text.kv_heads * text.head_dim
    wide = 4 * vision.hidden
    shapes: dict[str, Shape] = {
        _VISION + "embeddings.cls_token": (1, 1, vision.hidden),
        _VISION + "embeddings.position_embeddings": (1, vision.tokens, vision.hidden),
        _VISION + "embeddings.patch_embeddings.projection.weight": (
            vision.hidden,
            3,
            vision.patch_size,
            vision.patch_size,
        ),
        _VISION + "embeddings.patch_embeddings.projection.bias": (vision.hidden,),
        _PROJECTOR + "layer_norm.weight": (wide,),
        _PROJECTOR + "layer_norm.bias": (wide,),
        _PROJECTOR + "linear_1.weight": (text.hidden, wide),
        _PROJECTOR + "linear_1.bias": (text.hidden,),
        _PROJECTOR + "linear_2.weight": (text.hidden, text.hidden),
        _PROJECTOR + "linear_2.bias": (text.hidden,),
        _TEXT + "embed_tokens.weight": (text.vocabulary, text.hidden),
        _TEXT + "norm.weight": (text.hidden,),
        "lm_head.weight": (text.vocabulary, text.hidden),
    }
    for layer in range(vision.layers):
        at = f"{_VISION}encoder.layer.{layer}."
        for part in "qkv":
            shapes[f"{at}attention.{part}_proj.weight"] = (vision.hidden, vision.hidden)
            if vision.qkv_bias:
                shapes[f"{at}attention.{part}_proj.bias"] = (vision.hidden,)
        if vision.qk_norm:
            shapes |= {f"{at}attention.{part}_norm.weight": (vision.hidden,) for part in "qk"}
        shapes |= {
            at + "attention.projection_layer.weight": (vision.hidden, vision.hidden),
            at + "attention.projection_layer.bias": (vision.hidden,),
            at + "layernorm_before.weight": (vision.hidden,),
            at + "layernorm_after.weight": (vision.hidden,),
            at + "lambda_1": (vision.hidden,),
            at + "lambda_2": (vision.hidden,),
            at + "mlp.fc1.weight": (vision.ffn, vision.hidden),
            at + "mlp.fc1.bias": (vision.ffn,),
            at + "mlp.fc2.weight": (vision.hidden, vision.ffn),
            at + "mlp.fc2.bias": (vision.hidden,),
        }
    for layer in range(text.layers):
        at = f"{_TEXT}layers.{layer}."
        shapes |= {
            at + "self_attn.q_proj.weight": (text.hidden, text.hidden),
            at + "self_attn.k_proj.weight": (kv, text.hidden),
            at + "self_attn.v_proj.weight": (kv, text.hidden),
            at + "self_attn.o_proj.weight": (text.hidden, text.hidden),
            at + "mlp.gate_proj.weight": (text.ffn, text.hidden),
            at + "mlp.up_proj.weight": (text.ffn, text.hidden),
            at + "mlp.down_proj.weight": (text.hidden, text.ffn),
            at + "input_layernorm.weight": (text.hidden,),
            at + "post_attention_layernorm.weight": (text.hidden,),
        }
    return shapes


def parameter_count(config: ModelConfig) -> int:
    """Return the number of parameters: 25.51 billion for the real model."""
    total = 0
    for shape in native_shapes(config).values():
        size = 1
        for side in shape:
            size *= side
        total += size
    return total
