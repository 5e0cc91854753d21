"""transformers' native InternVL modules, built empty and filled from a checkpoint. No remote code, no pickles.

The configuration below makes `InternVLForConditionalGeneration` compute exactly what the original code computes: no
final norm in the tower (`use_mean_pooling` makes it an identity), CLS dropped, plain rotary positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig, LlamaConfig

from pipelines.engine import attention
from pipelines.engine.config import ModelConfig

Place = Callable[[str], torch.device]


def native_config(config: ModelConfig, image_token: int) -> InternVLConfig:
    """Return the configuration of the native classes."""
    vision, text = config.vision, config.text
    return InternVLConfig(
        vision_config=InternVLVisionConfig(
            hidden_size=vision.hidden,
            num_hidden_layers=vision.layers,
            num_attention_heads=vision.heads,
            intermediate_size=vision.ffn,
            image_size=vision.image_size,
            patch_size=vision.patch_size,
            layer_norm_eps=vision.eps,
            hidden_act=vision.activation,
            norm_type=vision.norm,
            use_qk_norm=vision.qk_norm,
            attention_bias=vision.qkv_bias,
            use_mean_pooling=True,
        ).to_dict(),
        text_config=LlamaConfig(
            hidden_size=text.hidden,
            num_hidden_layers=text.layers,
            num_attention_heads=text.heads,
            num_key_value_heads=text.kv_heads,
            intermediate_size=text.ffn,
            vocab_size=text.vocabulary,
            max_position_embeddings=text.max_positions,
            rms_norm_eps=text.eps,
            rope_parameters={"rope_type": "default", "rope_theta": text.rope_theta},
            hidden_act="silu",
            bos_token_id=config.bos,
            eos_token_id=config.eos,
            pad_token_id=config.eos,
            tie_word_embeddings=False,
            use_cache=False,
        ).to_dict(),
        image_token_id=image_token,
        image_seq_length=config.tokens_per_tile,
        downsample_ratio=0.5,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=False,
    )


def build_model(
    config: ModelConfig,
    tensors: Iterable[tuple[str, torch.Tensor]],
    *,
    dtype: torch.dtype,
    place: Place,
    image_token: int,
    edit: Callable[[nn.Module], None] | None = None,
    text_attention: str = attention.NAME,
) -> Any:
    """Return the model with its weights, in evaluation mode and without gradients.

    Args:
        config: the checkpoint's shape.
        tensors: native names and tensors, each once; they are moved one by one, so that host memory holds one shard.
        dtype: of weights and arithmetic.
        place: the device of each tensor, by native name.
        image_token: id of `<IMG_CONTEXT>`.
        text_attention: transformers' name of the language model's attention; the engine's own by default.
        edit: called with the empty model, before any weight is loaded; may replace linear layers.
    """
    native = native_config(config, image_token)
    with torch.device("meta"):
        model = InternVLForConditionalGeneration._from_config(  # type: ignore[no-untyped-call]
            native,
            dtype=dtype,
            attn_implementation={"vision_config": "sdpa", "text_config": text_attention},
        )
    if edit is not None:
        edit(model)
    for name, tensor in tensors:
        owner_name, _, leaf = name.rpartition(".")
        owner = model.get_submodule(owner_name) if owner_name else model
        moved = tensor.to(device=place(name), dtype=dtype, non_blocking=True)
        load = getattr(owner, "load_weight", None)
        if load is not None:
            load(leaf, moved)
        else:
            setattr(owner, leaf, nn.Parameter(moved, requires_grad=False))
    text = model.model.language_model
    # The rotary frequencies are no tensor of the checkpoint: rebuild the module that was born without storage.
    device = place("model.language_model.embed_tokens.weight")
    text.rotary_emb = type(text.rotary_emb)(config=text.config).to(device)
    return model.eval().requires_grad_(requires_grad=False)
