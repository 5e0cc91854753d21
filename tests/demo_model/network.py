"""The network in transformers' native classes, at the demo's size, and its forward pass for training.

The forward pass here computes what the native classes compute (a test compares them), but from uint8 tiles and with
fewer passes over memory, which is what limits a CPU.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  the usual name
from transformers import InternVLConfig, InternVLForConditionalGeneration, LlamaConfig
from transformers.models.internvl.configuration_internvl import InternVLVisionConfig

from deploy.demo.layout import Shape
from deploy.demo.tokenizer import BOS_ID, EOS_ID, added_tokens

MEAN = torch.tensor([0.485, 0.456, 0.406])
DEVIATION = torch.tensor([0.229, 0.224, 0.225])


def native_config(shape: Shape) -> InternVLConfig:
    """Return the native configuration that computes the original's function."""
    tokens = added_tokens()
    vision = InternVLVisionConfig(
        hidden_size=shape.vision_hidden,
        num_hidden_layers=shape.vision_layers,
        num_attention_heads=shape.vision_heads,
        intermediate_size=shape.vision_ffn,
        image_size=[shape.image_size] * 2,
        patch_size=[shape.patch_size] * 2,
        norm_type="rms_norm",
        use_qk_norm=True,
        attention_bias=False,
        use_mean_pooling=True,
        use_absolute_position_embeddings=True,
        layer_scale_init_value=1.0,
        layer_norm_eps=1e-6,
        hidden_act="gelu",
    )
    text = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.text_hidden,
        num_hidden_layers=shape.text_layers,
        num_attention_heads=shape.text_heads,
        num_key_value_heads=shape.text_kv_heads,
        intermediate_size=shape.text_ffn,
        max_position_embeddings=shape.max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": float(shape.rope_theta)},
        rms_norm_eps=1e-5,
        hidden_act="silu",
        attention_bias=False,
        mlp_bias=False,
        tie_word_embeddings=False,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=EOS_ID,
    )
    return InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokens["<IMG_CONTEXT>"],
        image_seq_length=shape.tokens_per_tile,
        downsample_ratio=0.5,
        projector_hidden_act="gelu",
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def _grid_waves(width: int, side: int) -> torch.Tensor:
    """Return 2-D sine and cosine position embeddings, float [side * side, width]."""
    quarter = width // 4
    rates = 100.0 ** (-torch.arange(quarter) / quarter)  # a low base: the grid is only sixteen wide
    angles = 1.5 * torch.arange(side).float()[:, None] * rates
    waves = torch.cat([angles.sin(), angles.cos()], 1)
    down = waves[:, None].expand(side, side, 2 * quarter)
    across = waves[None].expand(side, side, 2 * quarter)
    return torch.cat([down, across], -1).reshape(side * side, width)


def new_network(shape: Shape, *, seed: int) -> InternVLForConditionalGeneration:
    """Build the network with fresh float32 weights; position embeddings start as waves, not as zeros."""
    torch.manual_seed(seed)
    network = InternVLForConditionalGeneration(native_config(shape))
    positions = network.model.vision_tower.embeddings.position_embeddings
    with torch.no_grad():
        positions.zero_()
        positions[0, 1:] = 0.5 * _grid_waves(shape.vision_hidden, shape.image_size // shape.patch_size)
    return network


def patches_of(tiles: torch.Tensor, shape: Shape, dtype: torch.dtype) -> torch.Tensor:
    """Cut uint8 tiles [n, side, side, 3] into normalised patches [n, patches, 3 * patch * patch]."""
    count, patch, grid = tiles.shape[0], shape.patch_size, shape.image_size // shape.patch_size
    cut = tiles.view(count, grid, patch, grid, patch, 3).permute(0, 1, 3, 5, 2, 4)
    cut = cut.reshape(count, grid * grid, 3, patch * patch).to(dtype)
    scale = (1 / (255 * DEVIATION)).to(tiles.device, dtype).view(3, 1)
    shift = (-MEAN / DEVIATION).to(tiles.device, dtype).view(3, 1)
    return cut.mul_(scale).add_(shift).view(count, grid * grid, 3 * patch * patch)


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Attention over [batch * heads, length, width]: plain products beat the fused kernel in CPU training."""
    scale = query.shape[-1] ** -0.5
    if query.is_cuda:
        mask = None if bias is None else bias.to(query.dtype)
        return F.scaled_dot_product_attention(query[None], key[None], value[None], attn_mask=mask)[0]
    if bias is None:
        scores = torch.bmm(query * scale, key.transpose(1, 2))
    else:
        scores = torch.baddbmm(bias.expand(query.shape[0], -1, -1), query, key.transpose(1, 2), alpha=scale)
    return torch.bmm(scores.softmax(-1), value)


def fused(states: torch.Tensor, *layers: nn.Linear) -> tuple[torch.Tensor, ...]:
    """Return the outputs of linear layers without bias over the same states, from one product."""
    widths = [layer.weight.shape[0] for layer in layers]
    together = F.linear(states, torch.cat([layer.weight for layer in layers]))
    parts: tuple[torch.Tensor, ...] = torch.split(together, widths, -1)
    return parts


def split_heads(states: torch.Tensor, heads: int) -> torch.Tensor:
    """[batch, length, heads * width] to [batch * heads, length, width]."""
    batch, length, width = states.shape
    return states.reshape(batch, length, heads, width // heads).transpose(1, 2).reshape(batch * heads, length, -1)


def joined_heads(states: torch.Tensor, heads: int) -> torch.Tensor:
    """Undo `split_heads`."""
    rows, length, width = states.shape
    return states.view(rows // heads, heads, length, width).transpose(1, 2).reshape(-1, length, heads * width)


class _RootMeanSquare(torch.autograd.Function):
    """RMSNorm over the last dimension with few passes over memory: nine times the speed of `rms_norm` on a CPU."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        square = torch.linalg.vector_norm(states, dim=-1, keepdim=True, dtype=torch.float32).square_()
        rate = square.div_(states.shape[-1]).add_(eps).rsqrt_().to(states.dtype)
        normed = states * rate
        ctx.save_for_backward(normed, rate, weight)
        return torch.mul(normed, weight)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        normed, rate, weight = ctx.saved_tensors
        (grad,) = grads
        product = grad * normed
        flat = product.reshape(-1, product.shape[-1])
        to_weight = torch.mv(flat.t(), torch.ones(len(flat), dtype=flat.dtype, device=flat.device))
        mean = torch.matmul(product, (weight / weight.shape[0])[:, None])
        return torch.addcmul(grad * weight, normed, mean, value=-1).mul_(rate), to_weight, None


def root_mean_square(states: torch.Tensor, module: nn.Module, eps: float) -> torch.Tensor:
    """Return RMSNorm of `states` over its last dimension with the module's weight."""
    normed = _RootMeanSquare.apply(states, module.weight, eps)  # type: ignore[no-untyped-call]  # torch's own
    return cast(torch.Tensor, normed)


def see(network: InternVLForConditionalGeneration, tiles: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Run the vision tower on uint8 tiles and return patch features [n, patches, vision_hidden]."""
    tower = network.model.vision_tower
    first = tower.embeddings
    projection = first.patch_embeddings.projection
    dtype = projection.weight.dtype
    states = F.linear(patches_of(tiles, shape, dtype), projection.weight.flatten(1), projection.bias)
    states = torch.cat([first.cls_token.expand(len(states), -1, -1), states], 1) + first.position_embeddings
    heads = shape.vision_heads
    for layer in tower.encoder.layer:
        attention = layer.attention
        normed = root_mean_square(states, layer.layernorm_before, 1e-6)
        query, key, value = fused(normed, attention.q_proj, attention.k_proj, attention.v_proj)
        query = root_mean_square(query, attention.q_norm, 1e-6)
        key = root_mean_square(key, attention.k_norm, 1e-6)
        seen = attend(split_heads(query, heads), split_heads(key, heads), split_heads(value, heads), None)
        states = torch.addcmul(states, attention.projection_layer(joined_heads(seen, heads)), layer.lambda_1)
        normed = root_mean_square(states, layer.layernorm_after, 1e-6)
        states = torch.addcmul(states, layer.mlp.fc2(F.gelu(layer.mlp.fc1(normed))), layer.lambda_2)
    features: torch.Tensor = states[:, 1:]
    return features


def project(network: InternVLForConditionalGeneration, features: torch.Tensor) -> torch.Tensor:
    """Shuffle patches two by two and project them: [n, patches, vision] to [n, tokens, text]."""
    count, patches, width = features.shape
    grid = math.isqrt(patches)
    shuffled = network.model.pixel_shuffle(features.reshape(count, grid, grid, width), scale_factor=0.5)
    tokens: torch.Tensor = network.model.multi_modal_projector(shuffled.reshape(count, patches // 4, -1))
    return tokens
