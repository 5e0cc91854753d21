"""What `config.json` says of a checkpoint, in the original layout or in transformers' native one. Free of torch.

Only what InternVL-Chat-V1-5 is can be loaded; anything else is refused with a sentence that names the setting.
Sources: the original repository's `configuration_internvl_chat.py`, `configuration_intern_vit.py` and
`configuration_internlm2.py`; transformers' `InternVLConfig`, `InternVLVisionConfig` and `LlamaConfig`.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.engine.errors import CheckpointError

Json = Mapping[str, Any]


class Layout(enum.StrEnum):
    """How the tensors are named."""

    ORIGINAL = "original"
    NATIVE = "native"


@dataclass(frozen=True, kw_only=True)
class VisionShape:
    """The vision tower. Sizes in pixels and features."""

    hidden: int
    layers: int
    heads: int
    ffn: int
    image_size: int
    patch_size: int
    eps: float
    activation: str
    norm: str
    qk_norm: bool
    qkv_bias: bool

    @property
    def tokens(self) -> int:
        """Tokens of one tile inside the tower, CLS included."""
        return (self.image_size // self.patch_size) ** 2 + 1


@dataclass(frozen=True, kw_only=True)
class TextShape:
    """The language model."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocabulary: int
    max_positions: int
    eps: float
    rope_theta: float

    @property
    def head_dim(self) -> int:
        """Features of one head."""
        return self.hidden // self.heads

    @property
    def groups(self) -> int:
        """Query heads that share one key/value head."""
        return self.heads // self.kv_heads


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A checkpoint's shape and its few settings. `image_token` is None where only the tokenizer knows it."""

    layout: Layout
    vision: VisionShape
    text: TextShape
    bos: int
    eos: int
    image_token: int | None
    use_thumbnail: bool
    max_tiles: int
    dtype: str
    trained: bool

    @property
    def tokens_per_tile(self) -> int:
        """Visual tokens of a tile after the pixel shuffle by one half: 256 for the real model."""
        return (self.vision.image_size // self.vision.patch_size // 2) ** 2


def read_config(folder: Path) -> ModelConfig:
    """Read and check `config.json` of a checkpoint folder; `CheckpointError` names what does not fit."""
    path = folder / "config.json"
    try:
        raw: Json = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder.name} has no config.json: it is not a checkpoint folder") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder.name}/config.json cannot be read as JSON") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{folder.name}/config.json is not a JSON object")
    return parse_config(raw)


def parse_config(raw: Json) -> ModelConfig:
    """Turn the parsed JSON into a `ModelConfig`. `auto_map` is ignored: no code of a checkpoint ever runs."""
    kind = raw.get("model_type")
    if raw.get("quantization_config"):
        raise CheckpointError(
            "quantization_config is set: only plain weights are loaded; quantisation of the language model is an "
            "engine option, and 4-bit weights in the vision tower give nonsense"
        )
    try:
        if kind == "internvl_chat":
            return _original(raw)
        if kind == "internvl":
            return _native(raw)
    except KeyError as error:
        raise CheckpointError(f"config.json lacks the setting {error.args[0]}") from error
    except (TypeError, ValueError) as error:
        raise CheckpointError("config.json holds a setting of a wrong type") from error
    raise CheckpointError(f"model_type is {kind!r}; expected internvl_chat (original) or internvl (native)")


def _expect(raw: Json, key: str, wanted: object, default: object, why: str) -> None:
    found = raw.get(key, default)
    if found != wanted:
        raise CheckpointError(f"{key} is {found!r}, only {wanted!r} is supported: {why}")


def _forbid(raw: Json, key: str, why: str) -> None:
    if raw.get(key):
        raise CheckpointError(f"{key} is set: {why}")


def _original(raw: Json) -> ModelConfig:
    # The original code's own default for a missing ps_version is v1, whose pixel shuffle transposes the image.
    _expect(raw, "ps_version", "v2", "v1", "the native pixel shuffle is v2, and v1 would give wrong visual tokens")
    _expect(raw, "select_layer", -1, -1, "the last layer of the vision tower feeds the projector")
    _expect(raw, "downsample_ratio", 0.5, 0.5, "the projector takes four patches a token")
    _expect(raw, "template", "internlm2-chat", None, "the prompt is written for this template")
    for lora in ("use_backbone_lora", "use_llm_lora"):
        _expect(raw, lora, 0, 0, "merge the adapter into the weights first")
    vision, text = raw["vision_config"], raw["llm_config"]
    _expect(text, "model_type", "internlm2", "internlm2", "the language model is InternLM2")
    _forbid(text, "bias", "InternLM2 has no biases")
    _expect(text, "hidden_act", "silu", "silu", "InternLM2's gate is SiLU")
    _no_rope_scaling(text.get("rope_scaling"))
    _untied(raw, text)
    image_size = int(raw.get("force_image_size") or vision["image_size"])
    if image_size != int(vision["image_size"]):
        raise CheckpointError("force_image_size differs from vision_config.image_size: the positions would not fit")
    return ModelConfig(
        layout=Layout.ORIGINAL,
        vision=_vision(vision, qk_norm="qk_normalization", qkv_bias="qkv_bias"),
        text=_text(text, rope_theta=float(text.get("rope_theta", 10_000))),
        bos=int(text.get("bos_token_id", 1)),
        eos=int(text.get("eos_token_id", 2)),
        image_token=None,
        use_thumbnail=bool(raw.get("use_thumbnail", True)),
        max_tiles=int(raw.get("max_dynamic_patch", 12)),
        dtype=_dtype(raw, text),
        trained=_trained(raw),
    )


def _native(raw: Json) -> ModelConfig:
    _expect(raw, "ps_version", "v2", "v2", "the native pixel shuffle is v2")
    _expect(raw, "vision_feature_layer", -1, -1, "the last layer of the vision tower feeds the projector")
    _expect(raw, "vision_feature_select_strategy", "default", "default", "the CLS token is dropped")
    _expect(raw, "downsample_ratio", 0.5, 0.5, "the projector takes four patches a token")
    _expect(raw, "projector_hidden_act", "gelu", "gelu", "the projector's activation is GELU")
    vision, text = raw["vision_config"], raw["text_config"]
    _expect(text, "model_type", "llama", None, "InternLM2 is loaded as Llama")
    _expect(text, "hidden_act", "silu", "silu", "InternLM2's gate is SiLU")
    for bias in ("attention_bias", "mlp_bias"):
        _forbid(text, bias, "InternLM2 has no biases")
    if not vision.get("use_mean_pooling", True):
        raise CheckpointError("use_mean_pooling is off: InternViT-6B has no final norm")
    rope = text.get("rope_parameters") or {}
    _no_rope_scaling(rope if rope.get("rope_type", "default") != "default" else text.get("rope_scaling"))
    _untied(raw, text)
    return ModelConfig(
        layout=Layout.NATIVE,
        vision=_vision(vision, qk_norm="use_qk_norm", qkv_bias="attention_bias"),
        text=_text(text, rope_theta=float(rope.get("rope_theta") or text.get("rope_theta", 10_000))),
        bos=int(text.get("bos_token_id", 1)),
        eos=int(text.get("eos_token_id", 2)),
        image_token=None if raw.get("image_token_id") is None else int(raw["image_token_id"]),
        use_thumbnail=bool(raw.get("use_thumbnail", True)),
        max_tiles=int(raw.get("max_dynamic_patch", 12)),
        dtype=_dtype(raw, text),
        trained=_trained(raw),
    )


def _vision(raw: Json, *, qk_norm: str, qkv_bias: str) -> VisionShape:
    shape = VisionShape(
        hidden=int(raw["hidden_size"]),
        layers=int(raw["num_hidden_layers"]),
        heads=int(raw["num_attention_heads"]),
        ffn=int(raw["intermediate_size"]),
        image_size=_square(raw["image_size"]),
        patch_size=_square(raw["patch_size"]),
        eps=float(raw.get("layer_norm_eps", 1e-6)),
        activation=str(raw.get("hidden_act", "gelu")),
        norm=str(raw.get("norm_type", "rms_norm")),
        qk_norm=bool(raw.get(qk_norm, True)),
        qkv_bias=bool(raw.get(qkv_bias, False)),
    )
    if shape.norm != "rms_norm" or shape.activation != "gelu":
        raise CheckpointError("vision_config: only rms_norm with gelu is InternViT-6B")
    if shape.image_size % (2 * shape.patch_size) or shape.hidden % shape.heads:
        raise CheckpointError("vision_config: image_size must divide by twice the patch, hidden_size by the heads")
    return shape


def _text(raw: Json, *, rope_theta: float) -> TextShape:
    shape = TextShape(
        hidden=int(raw["hidden_size"]),
        layers=int(raw["num_hidden_layers"]),
        heads=int(raw["num_attention_heads"]),
        kv_heads=int(raw.get("num_key_value_heads") or raw["num_attention_heads"]),
        ffn=int(raw["intermediate_size"]),
        vocabulary=int(raw["vocab_size"]),
        max_positions=int(raw["max_position_embeddings"]),
        eps=float(raw.get("rms_norm_eps", 1e-5)),
        rope_theta=rope_theta,
    )
    if shape.hidden % shape.heads or shape.heads % shape.kv_heads:
        raise CheckpointError("llm_config: hidden_size must divide by the heads, and these by the key/value heads")
    return shape


def _square(value: Any) -> int:
    if isinstance(value, int):
        return value
    height, width = value
    if height != width:
        raise CheckpointError("vision_config: tiles and patches must be square")
    return int(height)


def _no_rope_scaling(scaling: Json | None) -> None:
    # "dynamic" changes nothing up to max_position_embeddings, beyond which prompts are refused.
    if scaling and (scaling.get("type") or scaling.get("rope_type") or "default") not in ("dynamic", "default"):
        raise CheckpointError(f"rope_scaling {dict(scaling)!r} is not supported: only plain or dynamic positions")


def _untied(raw: Json, text: Json) -> None:
    if text.get("tie_word_embeddings", raw.get("tie_word_embeddings", False)):
        raise CheckpointError("tie_word_embeddings is set: InternLM2-Chat-20B has a head of its own")


def _dtype(raw: Json, text: Json) -> str:
    return str(raw.get("torch_dtype") or raw.get("dtype") or text.get("torch_dtype") or "float32")


def _trained(raw: Json) -> bool:
    extra = raw.get("batchsight")
    return bool(extra.get("trained", True)) if isinstance(extra, dict) else True
