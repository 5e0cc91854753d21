"""The decoder's forward pass for training, with losses that pull chosen attention heads to chosen tokens."""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch.nn import functional as F  # noqa: N812  the usual name
from transformers import InternVLForConditionalGeneration

from deploy.demo.layout import Shape
from tests.demo_model.chats import CONTEXT, IGNORED, Batch
from tests.demo_model.network import attend, fused, joined_heads, root_mean_square, split_heads


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """What a pass gives: the answers' loss and accuracy, the pulls' loss and accuracy, and middle states.

    `hard` is the mean loss of the hardest tenth of the answers' characters: most of a caption follows from its begin,
    and the few characters that tell one answer from another drown in the mean.
    """

    loss: torch.Tensor
    hard: torch.Tensor
    right: float
    pull: torch.Tensor
    pulled: float
    states: dict[int, torch.Tensor]


@functools.lru_cache(maxsize=8)
def _causal(length: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.full((1, length, length), -1e4, dtype=dtype, device=device).triu(1)


@functools.lru_cache(maxsize=8)
def _angles(
    length: int, width: int, theta: float, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    rates = theta ** (-torch.arange(0, width, 2, device=device).float() / width)
    angles = torch.arange(length, device=device).float()[:, None] * rates
    angles = torch.cat([angles, angles], -1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions over [rows, length, width], halves paired as in Llama."""
    half = states.shape[-1] // 2
    turned = torch.cat([-states[..., half:], states[..., :half]], -1)
    return torch.addcmul(states * cos, turned, sin)


def _repeat(states: torch.Tensor, batch: int, groups: int) -> torch.Tensor:
    """Repeat key or value heads: [batch * kv, length, width] to [batch * kv * groups, length, width]."""
    _, length, width = states.shape
    return states[:, None].expand(-1, groups, -1, -1).reshape(-1, length, width)


def _pull_loss(
    query: torch.Tensor, key: torch.Tensor, pulls: torch.Tensor, heads: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of the pulled rows' attention against their targets; and how many hit."""
    sample, _, head, row, target = pulls.unbind(1)
    at = sample * heads + head
    rows = query[at, row] * query.shape[-1] ** -0.5
    # Products for each pulled (sample, head) once: gathering a key matrix a row would copy far more.
    scores = torch.empty(len(pulls), key.shape[1], dtype=torch.float32, device=key.device)
    parts, order = [], []
    for pair in sorted(set(at.tolist())):
        chosen = (at == pair).nonzero()[:, 0]
        parts.append(rows[chosen] @ key[pair].t())
        order.append(chosen)
    scores = torch.cat(parts).float()
    index = torch.cat(order)
    later = torch.arange(key.shape[1], device=key.device)[None] > row[index][:, None]
    scores = scores.masked_fill(later, -1e9)
    wanted = target[index]
    return F.cross_entropy(scores, wanted, reduction="sum"), (scores.argmax(-1) == wanted).sum()


def read(
    network: InternVLForConditionalGeneration,
    tokens: torch.Tensor,
    batch: Batch,
    shape: Shape,
    *,
    keep: tuple[int, ...] = (),
) -> Reading:
    """Run the decoder over prompts and answers.

    Args:
        network: native network.
        tokens: projected tokens of all tiles in order, [tiles, tokens, text_hidden].
        batch: padded sequences whose context ids number as many as the tokens.
        shape: sizes.
        keep: layers whose output states are returned, [n, length, text_hidden].
    """
    model = network.model.language_model
    heads, kv = shape.text_heads, shape.text_kv_heads
    states = model.embed_tokens(batch.ids)
    is_image = (batch.ids == CONTEXT)[..., None]
    filled = torch.zeros_like(states).masked_scatter(is_image, tokens.reshape(-1, tokens.shape[-1]))
    states = filled + states * ~is_image
    count, length, width = states.shape
    cos, sin = _angles(length, width // heads, float(shape.rope_theta), states.dtype, states.device)
    bias = _causal(length, states.dtype, states.device)
    pull = torch.zeros((), device=states.device)
    hits = torch.zeros((), device=states.device)
    kept = {}
    asked = batch.labels != IGNORED
    first = int(asked.any(0).nonzero()[0])
    for number, layer in enumerate(model.layers):
        attention = layer.self_attn
        normed = root_mean_square(states, layer.input_layernorm, 1e-5)
        query, key, value = fused(normed, attention.q_proj, attention.k_proj, attention.v_proj)
        query = _rotate(split_heads(query, heads), cos, sin)
        key = _repeat(_rotate(split_heads(key, kv), cos, sin), count, heads // kv)
        value = _repeat(split_heads(value, kv), count, heads // kv)
        here = batch.pulls[batch.pulls[:, 1] == number]
        if len(here):
            loss, hit = _pull_loss(query, key, here, heads)
            pull, hits = pull + loss, hits + hit
        if number == len(model.layers) - 1 and number not in keep:  # nobody looks at the prompt's last states
            states, query, bias, asked = states[:, first:], query[:, first:], bias[:, first:], asked[:, first:]
        states = states + attention.o_proj(joined_heads(attend(query, key, value, bias), heads))
        normed = root_mean_square(states, layer.post_attention_layernorm, 1e-5)
        gate, up = fused(normed, layer.mlp.gate_proj, layer.mlp.up_proj)
        inner = F.silu(gate) * up
        states = states + layer.mlp.down_proj(inner)
        if number in keep:
            kept[number] = states
    final = root_mean_square(states[asked], model.norm, 1e-5)
    logits = network.lm_head(final).float()
    wanted = batch.labels[batch.labels != IGNORED]
    right = float((logits.argmax(-1) == wanted).float().mean())
    losses = F.cross_entropy(logits, wanted, reduction="none")
    pulls = max(1, len(batch.pulls))
    return Reading(
        loss=losses.mean(),
        hard=losses.topk(max(1, len(losses) // 10)).values.mean(),
        right=right,
        pull=pull / pulls,
        pulled=float(hits) / pulls,
        states=kept,
    )
