"""Shape and files of a checkpoint in the original InternVL-Chat-V1-5 layout, at any size.

`Shape` holds every number; `config_json` and `generation_config_json` write the original's configuration, and
`tensor_shapes` lists the original tensor names with their shapes (github OpenGVLab/InternVL, `modeling_intern_vit.py`,
`modeling_internlm2.py`, `modeling_internvl_chat.py`). Both the random checkpoint and the trained one come from here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

from deploy.demo.tokenizer import BOS_ID, EOS_ID, added_tokens, vocabulary_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of one checkpoint. Lengths are in pixels, widths in features."""

    image_size: int = 448
    patch_size: int = 28
    vision_hidden: int = 192
    vision_layers: int = 4
    vision_heads: int = 3
    vision_ffn: int = 768
    text_hidden: int = 192
    text_layers: int = 6
    text_heads: int = 4
    text_kv_heads: int = 2
    text_ffn: int = 512
    vocabulary: int = vocabulary_size()
    max_positions: int = 8192
    rope_theta: int = 10_000

    @property
    def tokens_per_tile(self) -> int:
        """Visual tokens of one tile after the pixel shuffle by one half."""
        return (self.image_size // self.patch_size // 2) ** 2


TINY = Shape(
    image_size=56,
    patch_size=14,
    vision_hidden=48,
    vision_layers=2,
    vision_heads=3,
    vision_ffn=96,
    text_hidden=64,
    text_layers=2,
    text_heads=4,
    text_kv_heads=2,
    text_ffn=96,
)


def tensor_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Return every tensor of the original layout, in file order."""
    vision, text, patch = shape.vision_hidden, shape.text_hidden, shape.patch_size
    head = text // shape.text_heads
    out: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.class_embedding": (1, 1, vision),
        "vision_model.embeddings.position_embedding": (1, (shape.image_size // patch) ** 2 + 1, vision),
        "vision_model.embeddings.patch_embedding.weight": (vision, 3, patch, patch),
        "vision_model.embeddings.patch_embedding.bias": (vision,),
    }
    for layer in range(shape.vision_layers):
        at = f"vision_model.encoder.layers.{layer}."
        out |= {
            at + "ls1": (vision,),
            at + "ls2": (vision,),
            at + "norm1.weight": (vision,),
            at + "norm2.weight": (vision,),
            at + "attn.qkv.weight": (3 * vision, vision),
            at + "attn.q_norm.weight": (vision,),
            at + "attn.k_norm.weight": (vision,),
            at + "attn.proj.weight": (vision, vision),
            at + "attn.proj.bias": (vision,),
            at + "mlp.fc1.weight": (shape.vision_ffn, vision),
            at + "mlp.fc1.bias": (shape.vision_ffn,),
            at + "mlp.fc2.weight": (vision, shape.vision_ffn),
            at + "mlp.fc2.bias": (vision,),
        }
    out |= {
        "mlp1.0.weight": (4 * vision,),
        "mlp1.0.bias": (4 * vision,),
        "mlp1.1.weight": (text, 4 * vision),
        "mlp1.1.bias": (text,),
        "mlp1.3.weight": (text, text),
        "mlp1.3.bias": (text,),
        "language_model.model.tok_embeddings.weight": (shape.vocabulary, text),
    }
    for layer in range(shape.text_layers):
        at = f"language_model.model.layers.{layer}."
        out |= {
            at + "attention.wqkv.weight": ((shape.text_heads + 2 * shape.text_kv_heads) * head, text),
            at + "attention.wo.weight": (text, text),
            at + "feed_forward.w1.weight": (shape.text_ffn, text),
            at + "feed_forward.w3.weight": (shape.text_ffn, text),
            at + "feed_forward.w2.weight": (text, shape.text_ffn),
            at + "attention_norm.weight": (text,),
            at + "ffn_norm.weight": (text,),
        }
    return out | {
        "language_model.model.norm.weight": (text,),
        "language_model.output.weight": (shape.vocabulary, text),
    }


def config_json(shape: Shape, *, dtype: str, trained: bool, note: str) -> dict[str, object]:
    """Return `config.json` in the original's form, with one field of ours.

    Args:
        shape: sizes of the checkpoint.
        dtype: the weights' type as the file names it, such as ``float16``.
        trained: False for random weights; the product says so beside its answers.
        note: one sentence about the weights.
    """
    return {
        "architectures": ["InternVLChatModel"],
        "batchsight": {"trained": trained, "note": note},
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": shape.image_size,
        "hidden_size": shape.text_hidden,
        "llm_config": {
            "architectures": ["InternLM2ForCausalLM"],
            "bias": False,
            "bos_token_id": BOS_ID,
            "eos_token_id": EOS_ID,
            "hidden_act": "silu",
            "hidden_size": shape.text_hidden,
            "initializer_range": 0.02,
            "intermediate_size": shape.text_ffn,
            "max_position_embeddings": shape.max_positions,
            "model_type": "internlm2",
            "num_attention_heads": shape.text_heads,
            "num_hidden_layers": shape.text_layers,
            "num_key_value_heads": shape.text_kv_heads,
            "pad_token_id": EOS_ID,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {"factor": 3.0, "type": "dynamic"},
            "rope_theta": shape.rope_theta,
            "tie_word_embeddings": False,
            "torch_dtype": dtype,
            "use_cache": True,
            "vocab_size": shape.vocabulary,
        },
        "max_dynamic_patch": 12,
        "min_dynamic_patch": 1,
        "model_type": "internvl_chat",
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internlm2-chat",
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "use_thumbnail": True,
        "vision_config": {
            "architectures": ["InternVisionModel"],
            "attention_dropout": 0.0,
            "drop_path_rate": 0.0,
            "dropout": 0.0,
            "hidden_act": "gelu",
            "hidden_size": shape.vision_hidden,
            "image_size": shape.image_size,
            "initializer_factor": 0.1,
            "initializer_range": 0.02,
            "intermediate_size": shape.vision_ffn,
            "layer_norm_eps": 1e-06,
            "model_type": "intern_vit_6b",
            "norm_type": "rms_norm",
            "num_attention_heads": shape.vision_heads,
            "num_channels": 3,
            "num_hidden_layers": shape.vision_layers,
            "patch_size": shape.patch_size,
            "qk_normalization": True,
            "qkv_bias": False,
            "torch_dtype": dtype,
        },
    }


def generation_config_json() -> dict[str, object]:
    """Return `generation_config.json`: only the end of a turn stops an answer."""
    return {
        "bos_token_id": BOS_ID,
        "eos_token_id": [EOS_ID, added_tokens()["<|im_end|>"]],
        "pad_token_id": EOS_ID,
    }


def write_json(path: Path, value: object) -> None:
    """Write `value` as readable JSON with a final newline."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_checksums(folder: Path) -> None:
    """Write `SHA256SUMS` over every other file of `folder`, in the form `sha256sum -c` reads."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != "SHA256SUMS")
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / "SHA256SUMS").write_text("".join(lines), encoding="ascii")
