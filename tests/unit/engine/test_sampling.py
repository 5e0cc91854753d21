from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from pipelines.engine.errors import BadRequest, UnknownOption
from pipelines.engine.params import parse_params
from pipelines.engine.sampling import GREEDY, SamplingRow, row, sample, uniform
from pipelines.engine.types import GenerationParams


def drawn(**changes: object) -> SamplingRow:
    values: dict[str, object] = {
        "greedy": False,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "penalty": 1.0,
        "draw": 0.5,
    }
    return SamplingRow(**{**values, **changes})  # type: ignore[arg-type]


@given(
    seed=st.integers(0, 50),
    temperature=st.sampled_from([0.3, 1.0, 1.7]),
    top_k=st.sampled_from([1, 3, 20, 0, 99]),
    top_p=st.sampled_from([0.1, 0.6, 1.0]),
    penalty=st.sampled_from([1.0, 1.4]),
)
def test_the_distribution_is_that_of_generate(
    seed: int, temperature: float, top_k: int, top_p: float, penalty: float
) -> None:
    """Sweeping the uniform number over [0, 1) must give every token its share under transformers' own warpers."""
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
    seen_ids = torch.tensor([[1, 4, 5]])
    warpers = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(penalty)] if penalty != 1.0 else [])
    warpers.append(TemperatureLogitsWarper(temperature))
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1.0:
        warpers.append(TopPLogitsWarper(top_p))
    ids: Any = seen_ids
    scores: Any = logits.clone()
    wanted = warpers(ids, scores).softmax(-1)[0]
    seen = torch.zeros(1, 12, dtype=torch.bool)
    seen[0, seen_ids[0]] = True
    count = 2000
    rows = tuple(
        drawn(temperature=temperature, top_k=top_k, top_p=top_p, penalty=penalty, draw=(n + 0.5) / count)
        for n in range(count)
    )
    tokens, _ = sample(logits.expand(count, -1), rows, seen.expand(count, -1))
    shares = torch.bincount(tokens, minlength=12) / count
    assert float((shares - wanted).abs().max()) <= 2.0 / count


def test_greedy_takes_the_best_and_its_own_log_probability() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    tokens, logprobs = sample(logits, (GREEDY,), None)
    assert tokens.tolist() == [1]
    assert logprobs.tolist() == pytest.approx([float(logits.log_softmax(-1)[0, 1])])


def test_the_penalty_covers_only_what_was_seen() -> None:
    logits = torch.tensor([[2.0, 1.9, -1.0]])
    penalised = SamplingRow(greedy=True, temperature=1.0, top_k=0, top_p=1.0, penalty=1.5, draw=0.0)
    tokens, _ = sample(logits, (penalised,), torch.tensor([[True, False, False]]))
    assert tokens.tolist() == [1]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_are_seen_in_the_log_probability(bad: float) -> None:
    logits = torch.zeros(3, 5)
    logits[1, 2] = bad
    _, logprobs = sample(logits, (GREEDY, drawn(), drawn(top_k=2)), None)
    assert torch.isfinite(logprobs).tolist() == [True, False, True]


def test_neighbours_do_not_change_a_draw() -> None:
    logits = torch.randn(6, 40, generator=torch.Generator().manual_seed(1))
    rows = tuple(drawn(top_k=k, draw=0.37 + 0.1 * n) for n, k in enumerate((0, 5, 40, 1, 0, 7)))
    together, _ = sample(logits, rows, None)
    alone = [int(sample(logits[n : n + 1], rows[n : n + 1], None)[0]) for n in range(6)]
    assert together.tolist() == alone


@given(seed=st.integers(0, 2**63), index=st.integers(0, 10**6))
def test_the_uniform_number_is_in_range_and_repeatable(seed: int, index: int) -> None:
    assert 0.0 <= uniform(seed, index) < 1.0
    assert uniform(seed, index) == uniform(seed, index) != uniform(seed, index + 1)


def test_the_uniform_numbers_are_spread_evenly() -> None:
    values = torch.tensor([uniform(seed, index) for seed in range(50) for index in range(200)])
    counts = torch.histc(values, bins=10, min=0, max=1)
    assert float((counts - 1000).abs().max()) < 150


def test_a_mark_that_rounds_up_stays_on_the_last_kept_token() -> None:
    tokens, _ = sample(torch.tensor([[5.0, 5.0, -40.0]]), (drawn(top_k=2, draw=1.0 - 2**-53),), None)
    assert tokens.tolist() == [1]


def test_a_request_without_sampling_is_greedy_whatever_its_temperature() -> None:
    assert row(GenerationParams(temperature=0.1, top_k=3), seed=1, index=0) is GREEDY
    assert row(GenerationParams(repetition_penalty=1.2), seed=1, index=0).penalty == 1.2


def test_unknown_options_are_errors() -> None:
    with pytest.raises(UnknownOption, match="num_beams"):
        parse_params({"num_beams": 3})


def test_options_are_read_and_checked() -> None:
    params = parse_params({"max_new_tokens": 5, "stop": "x", "do_sample": True, "seed": 3})
    assert params == GenerationParams(max_new_tokens=5, stop=("x",), do_sample=True, seed=3)
    for bad in ({"max_new_tokens": True}, {"temperature": "hot"}, {"do_sample": 1}, {"seed": -1}, {"top_p": 0}):
        with pytest.raises(BadRequest):
            parse_params(bad)
