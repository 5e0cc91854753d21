"""From logits to tokens: per-request options, and a seed that does not see the rest of the batch.

The order is that of transformers' `generate`: repetition penalty, temperature, top-k, top-p. The penalty covers {BOS}
and the generated tokens, not the prompt (the original generates from `inputs_embeds`). A draw is the inverse of the
cumulative distribution at one uniform number, which is a pure function of (seed, index of the token): the same request
gets the same tokens alone and in a crowd.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipelines.engine.types import GenerationParams

_MASK = (1 << 64) - 1


def uniform(seed: int, index: int) -> float:
    """Return a number in [0, 1) for the token `index` of a request: splitmix64 (Steele et al. 2014) of both."""
    state = (seed * 0x9E3779B97F4A7C15 + (index + 1) * 0xD1B54A32D192ED03) & _MASK
    for _ in range(2):
        state = (state + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return (state >> 11) * 2.0**-53


@dataclass(frozen=True, kw_only=True)
class SamplingRow:
    """The options of one row of a step. `draw` is its uniform number; greedy rows do not use it."""

    greedy: bool
    temperature: float
    top_k: int
    top_p: float
    penalty: float
    draw: float


GREEDY = SamplingRow(greedy=True, temperature=1.0, top_k=0, top_p=1.0, penalty=1.0, draw=0.0)


def row(params: GenerationParams, *, seed: int, index: int) -> SamplingRow:
    """Return the row for the token `index` of a request."""
    if not params.do_sample:
        if params.repetition_penalty == 1.0:
            return GREEDY
        return SamplingRow(
            greedy=True, temperature=1.0, top_k=0, top_p=1.0, penalty=params.repetition_penalty, draw=0.0
        )
    return SamplingRow(
        greedy=False,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        penalty=params.repetition_penalty,
        draw=uniform(seed, index),
    )


def sample(
    logits: torch.Tensor, rows: tuple[SamplingRow, ...], seen: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose one token a row, without waiting for the device.

    Args:
        logits: `[rows, vocabulary]`, any float dtype; sampled in float32 or wider.
        rows: the options.
        seen: bool `[rows, vocabulary]`, BOS and the generated tokens; needed where a row has a penalty.

    Returns:
        Tokens, int64 `[rows]`, and the log-probability of each under the model's own distribution (before penalty and
        temperature), float32 `[rows]`; not finite where the row's logits hold NaN or +infinity.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    total = wide.logsumexp(-1)
    scores = wide
    if seen is not None:
        penalty = _column([row.penalty for row in rows], wide)
        scores = torch.where(seen, torch.where(wide < 0, wide * penalty, wide / penalty), wide)
    tokens = scores.argmax(-1)
    drawn = [number for number, row in enumerate(rows) if not row.greedy]
    if drawn:
        index = torch.tensor(drawn).to(wide.device, non_blocking=True)
        tokens = tokens.index_copy(0, index, _draw(scores.index_select(0, index), [rows[number] for number in drawn]))
    chosen = wide.gather(-1, tokens[:, None])[:, 0]
    return tokens, (chosen - total).float()


def _column(values: list[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True)[:, None]


def _draw(scores: torch.Tensor, rows: list[SamplingRow]) -> torch.Tensor:
    vocabulary = scores.shape[-1]
    widths = [min(row.top_k, vocabulary) if row.top_k else vocabulary for row in rows]
    scores = torch.nan_to_num(scores, nan=0.0) / _column([row.temperature for row in rows], scores)
    values, order = scores.topk(max(widths), dim=-1) if max(widths) < vocabulary else scores.sort(-1, descending=True)
    # In double precision, so that a neighbour with a wider top-k cannot move a sum by a rounding.
    values = values.double()
    rank = torch.arange(values.shape[-1], device=values.device)
    values = values.masked_fill(rank >= _column([float(width) for width in widths], values), -torch.inf)
    probabilities = values.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    # The most likely token always stays; a token stays while the mass before it is under top_p.
    keep = (before < _column([row.top_p for row in rows], values)) | (rank == 0)
    cumulative = (probabilities * keep).cumsum(-1)
    mark = _column([row.draw for row in rows], values) * cumulative[:, -1:]
    place = torch.searchsorted(cumulative, mark, right=True)
    # A mark that rounds up to the whole mass must not fall behind the last token that stays.
    last = (keep & (probabilities > 0)).sum(-1, keepdim=True) - 1
    return order.gather(-1, torch.minimum(place, last))[:, 0]
