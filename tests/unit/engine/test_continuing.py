"""An answer that was cut and gone on with equals the one that was never cut, token for token (float64)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.engine.config import read_config
from pipelines.engine.errors import BadRequest, PromptTooLong
from pipelines.engine.handle import PendingHandle
from pipelines.engine.request import ActiveRequest, Bounds, prepare
from pipelines.engine.service import LocalEngine
from pipelines.engine.types import AnswerPrefix, Completion, EngineRequest, FinishReason, GenerationParams
from tests.unit.engine.conftest import tiles

LIMIT = 40
ASK = EngineRequest(request_id="r", question="<image>\nRead it.", media=tiles(2, seed=90), group="g")


def answer(engine: LocalEngine, request: EngineRequest) -> Completion:
    return engine.submit(request).future.result(60)


def in_parts(engine: LocalEngine, request: EngineRequest, sizes: list[int]) -> list[Completion]:
    """Ask for `sizes` tokens at a time, then for the rest."""
    parts: list[Completion] = []
    left = request.params.max_new_tokens
    prefix = None
    for size in [*sizes, left]:
        params = replace(request.params, max_new_tokens=max(1, min(size, left)))
        part = answer(engine, replace(request, params=params, prefix=prefix))
        parts.append(part)
        left -= part.completion_tokens
        if part.finish_reason is not FinishReason.LENGTH or left <= 0:
            break
        prefix = AnswerPrefix(text=part.text, token_ids=part.token_ids)
    return parts


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    params=st.sampled_from(
        [
            GenerationParams(max_new_tokens=LIMIT),
            GenerationParams(max_new_tokens=LIMIT, repetition_penalty=1.3),
            GenerationParams(max_new_tokens=LIMIT, do_sample=True, temperature=1.5, seed=7),
        ]
    ),
)
def test_parts_join_to_the_whole(engine: LocalEngine, sizes: list[int], params: GenerationParams) -> None:
    """Penalties and seeds too: they see the tokens that were given, and the index goes on."""
    request = replace(ASK, params=params)
    whole = answer(engine, request)
    parts = in_parts(engine, request, sizes)
    last = parts[-1]
    assert (last.token_ids, last.text, last.finish_reason) == (whole.token_ids, whole.text, whole.finish_reason)
    assert sum(part.completion_tokens for part in parts) == whole.completion_tokens


def test_the_tokens_given_count_as_prompt_and_come_from_the_cache(engine: LocalEngine) -> None:
    params = GenerationParams(max_new_tokens=24)
    first = answer(engine, replace(ASK, question="<image>\nAgain?", params=params))
    assert first.finish_reason is FinishReason.LENGTH
    prefix = AnswerPrefix(text=first.text, token_ids=first.token_ids)
    second = answer(engine, replace(ASK, question="<image>\nAgain?", params=params, prefix=prefix))
    assert second.prompt_tokens == first.prompt_tokens + 24
    assert second.cached_tokens > first.prompt_tokens, "pages of generated tokens are shared too"
    assert second.completion_tokens == len(second.token_ids) - 24


def test_text_alone_is_spelt_anew_and_keeps_its_characters(engine: LocalEngine) -> None:
    request = replace(ASK, params=GenerationParams(max_new_tokens=4), prefix=AnswerPrefix(text="naïve £"))
    second = answer(engine, request)
    assert second.text.startswith("naïve £")


def test_a_character_that_is_cut_in_two_is_whole_again(engine: LocalEngine) -> None:
    euro = engine.tokenizer.encode(["€"])
    assert len(euro) == 3, "three bytes: the vocabulary has no such piece"
    prefix = AnswerPrefix(text="\N{REPLACEMENT CHARACTER}", token_ids=tuple(euro[:-1]))
    pieces: list[str] = []
    request = replace(ASK, params=GenerationParams(max_new_tokens=1), prefix=prefix)
    second = engine.submit(request, on_text=pieces.append).future.result(60)
    whole = engine.tokenizer.decode([*euro[:-1], *second.token_ids[len(euro) - 1 :]]).strip()
    assert second.text == whole
    assert "".join(pieces) == whole


def test_an_answer_that_fills_the_context_is_not_gone_on_with(
    checkpoint: Path, start: Callable[..., LocalEngine]
) -> None:
    engine = start(checkpoint)
    prefix = AnswerPrefix(text="", token_ids=(5,) * engine.info.context_length)
    with pytest.raises(PromptTooLong):
        engine.submit(replace(ASK, prefix=prefix))


def test_an_answer_that_has_ended_is_not_gone_on_with(engine: LocalEngine) -> None:
    with pytest.raises(BadRequest):
        engine.submit(replace(ASK, prefix=AnswerPrefix(text="", token_ids=(engine.tokenizer.stop_token,))))


def test_a_repetition_across_the_seam_is_noticed_and_tried_again_behind_the_seam(
    engine: LocalEngine, checkpoint: Path
) -> None:
    prefix = AnswerPrefix(text="", token_ids=(20,) * 90)
    request = replace(ASK, params=GenerationParams(max_new_tokens=300), prefix=prefix)
    bounds = Bounds(context=1024, cache=4096)
    config = read_config(checkpoint)
    sequence = prepare(request, number=1, tokenizer=engine.tokenizer, config=config, bounds=bounds)
    handle = PendingHandle("r", on_text=None, on_cancel=lambda: None)
    active = ActiveRequest(request, handle, sequence, engine.tokenizer)
    reasons = []
    for _ in range(16):
        sequence.tokens.append(20)
        reasons.append(active.token(20, -0.1, guard=True))
    assert reasons.index(FinishReason.DEGENERATE) == 5, "96 tokens, of which 90 came with the request"
    again = active.retry(2)
    assert again is not None
    assert again.tokens == sequence.tokens[: sequence.prompt_length + 90]
    assert (again.given, again.limit) == (90, 390)
