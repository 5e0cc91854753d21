"""Native weights written back in the original layout, with config, tokenizer and checksums.

The renaming is MODEL-by-name: every native tensor has exactly one place in the original file. The inverse
(`native_from_original`) is here too, so that a round trip can be tested without the product's own converter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from deploy.demo.layout import (
    Shape,
    config_json,
    generation_config_json,
    tensor_shapes,
    write_checksums,
    write_json,
)
from deploy.demo.tokenizer import write_tokenizer

Tensors = dict[str, torch.Tensor]

_VISION = "model.vision_tower."
_TEXT = "model.language_model."
# Original name to native name; `#` stands for a layer's number.
_NAMES = {
    "vision_model.embeddings.class_embedding": _VISION + "embeddings.cls_token",
    "vision_model.embeddings.position_embedding": _VISION + "embeddings.position_embeddings",
    "vision_model.embeddings.patch_embedding.weight": _VISION + "embeddings.patch_embeddings.projection.weight",
    "vision_model.embeddings.patch_embedding.bias": _VISION + "embeddings.patch_embeddings.projection.bias",
    "mlp1.0.weight": "model.multi_modal_projector.layer_norm.weight",
    "mlp1.0.bias": "model.multi_modal_projector.layer_norm.bias",
    "mlp1.1.weight": "model.multi_modal_projector.linear_1.weight",
    "mlp1.1.bias": "model.multi_modal_projector.linear_1.bias",
    "mlp1.3.weight": "model.multi_modal_projector.linear_2.weight",
    "mlp1.3.bias": "model.multi_modal_projector.linear_2.bias",
    "language_model.model.tok_embeddings.weight": _TEXT + "embed_tokens.weight",
    "language_model.model.norm.weight": _TEXT + "norm.weight",
    "language_model.output.weight": "lm_head.weight",
}
_VISION_LAYER = {
    "ls1": "lambda_1",
    "ls2": "lambda_2",
    "norm1.weight": "layernorm_before.weight",
    "norm2.weight": "layernorm_after.weight",
    "attn.q_norm.weight": "attention.q_norm.weight",
    "attn.k_norm.weight": "attention.k_norm.weight",
    "attn.proj.weight": "attention.projection_layer.weight",
    "attn.proj.bias": "attention.projection_layer.bias",
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
_LAYER = re.compile(r"^(vision_model\.encoder|language_model\.model)\.layers\.(\d+)\.(.+)$")


def _native_places(name: str) -> tuple[str, ...]:
    """Return the native names of an original tensor: three for a packed one, else one."""
    found = _LAYER.match(name)
    if not found:
        return (_NAMES[name],)
    part, number, rest = found.groups()
    if part.startswith("vision"):
        at = f"{_VISION}encoder.layer.{number}."
        if rest == "attn.qkv.weight":
            return tuple(f"{at}attention.{which}_proj.weight" for which in "qkv")
        return (at + _VISION_LAYER[rest],)
    at = f"{_TEXT}layers.{number}."
    if rest == "attention.wqkv.weight":
        return tuple(f"{at}self_attn.{which}_proj.weight" for which in "qkv")
    return (at + _TEXT_LAYER[rest],)


def _pack(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Interleave by kv head: its group of queries, then its key, then its value."""
    kv, width = shape.text_kv_heads, shape.text_hidden // shape.text_heads
    groups = shape.text_heads // kv
    parts = (query.view(kv, groups, width, -1), key.view(kv, 1, width, -1), value.view(kv, 1, width, -1))
    return torch.cat(parts, 1).reshape(-1, query.shape[-1])


def _unpack(packed: torch.Tensor, shape: Shape) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    kv, width = shape.text_kv_heads, shape.text_hidden // shape.text_heads
    groups, inner = shape.text_heads // kv, packed.shape[-1]
    whole = packed.view(kv, groups + 2, width, inner)
    query, key, value = whole[:, :groups], whole[:, groups], whole[:, groups + 1]
    return query.reshape(-1, inner), key.reshape(-1, inner), value.reshape(-1, inner)


def original_from_native(native: Mapping[str, torch.Tensor], shape: Shape) -> Tensors:
    """Rename and pack native tensors; every original tensor gets its exact shape."""
    out: Tensors = {}
    for name, size in tensor_shapes(shape).items():
        parts = [native[place] for place in _native_places(name)]
        if name.endswith("wqkv.weight"):
            whole = _pack(parts[0], parts[1], parts[2], shape)
        else:
            whole = torch.cat(parts) if len(parts) > 1 else parts[0]
        out[name] = whole.reshape(size).contiguous()
    return out


def native_from_original(original: Mapping[str, torch.Tensor], shape: Shape) -> Tensors:
    """Undo `original_from_native`."""
    out: Tensors = {}
    for name, tensor in original.items():
        places = _native_places(name)
        if len(places) == 1:
            out[places[0]] = tensor
        elif name.endswith("wqkv.weight"):
            out |= dict(zip(places, _unpack(tensor, shape), strict=True))
        else:
            out |= dict(zip(places, tensor.chunk(3), strict=True))
    return out


def write_checkpoint(folder: Path, native: Mapping[str, torch.Tensor], shape: Shape, *, note: str) -> None:
    """Write a checkpoint folder in the original layout, weights in float16."""
    folder.mkdir(parents=True, exist_ok=True)
    half = {name: tensor.half() for name, tensor in original_from_native(native, shape).items()}
    save_file(half, folder / "model.safetensors", {"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    write_json(folder / "config.json", config_json(shape, dtype="float16", trained=True, note=note))
    write_json(folder / "generation_config.json", generation_config_json())
    write_tokenizer(folder)
    write_checksums(folder)


def read_checkpoint(folder: Path, shape: Shape) -> Tensors:
    """Return the weights of a checkpoint folder in native names, as float32."""
    stored = load_file(folder / "model.safetensors")
    return {name: t.float() for name, t in native_from_original(stored, shape).items()}
