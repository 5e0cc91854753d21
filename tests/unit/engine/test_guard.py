from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from deploy.demo.random_checkpoint import write_random_checkpoint
from pipelines.engine.guard import LEAST, LONGEST, REPEATED, REPEATS, SHORTEST, repeating, without_repetition
from pipelines.engine.service import LocalEngine
from pipelines.engine.types import EngineRequest, FinishReason, GenerationParams


@given(gram=st.lists(st.integers(0, 3), min_size=1, max_size=LONGEST), head=st.lists(st.integers(0, 3), max_size=20))
def test_a_repeated_ngram_is_found_whatever_stands_before_it(gram: list[int], head: list[int]) -> None:
    times = max(REPEATS, -(-LEAST // len(gram))) + 1
    period = repeating(head + gram * times)
    assert 0 < period <= len(gram)


@given(tokens=st.lists(st.integers(0, 5), max_size=LEAST - 1))
def test_short_answers_never_count(tokens: list[int]) -> None:
    assert repeating(tokens) == 0


@given(st.lists(st.integers(0, 2), min_size=LEAST, max_size=400))
def test_what_is_found_really_repeats(tokens: list[int]) -> None:
    if period := repeating(tokens):
        tail = tokens[-max(LEAST, period * REPEATS) :]
        assert all(a == b for a, b in zip(tail, tail[period:], strict=False))


def test_a_table_of_changing_rows_is_not_a_loop() -> None:
    rows = [[7, 7, number % 50, 8] for number in range(60)]
    assert repeating([token for row in rows for token in row]) == 0


@pytest.fixture(scope="module")
def looping(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that says one token for ever when greedy: its head adds a large bias through a constant feature."""
    folder = tmp_path_factory.mktemp("loop") / "tiny"
    write_random_checkpoint(folder, seed=1)
    weights = load_file(folder / "model.safetensors")
    head = weights["language_model.output.weight"]
    head[:] = head * 0.02
    weights["language_model.model.norm.weight"][:] = 1.0
    for name, tensor in weights.items():
        # Every position ends in nearly the same hidden state, so greedy decoding stands still while sampling moves on.
        if name.startswith("language_model.model.layers") and name.endswith(("wo.weight", "w2.weight")):
            tensor[:] = 0.0
        if name.endswith("tok_embeddings.weight"):
            tensor[:] = torch.ones_like(tensor)
    save_file(weights, folder / "model.safetensors")
    (folder / "SHA256SUMS").unlink()
    return folder


REQUEST = EngineRequest(request_id="r", question="Go", params=GenerationParams(max_new_tokens=600))


def test_a_loop_is_left_by_a_second_try(looping: Path, start: Callable[..., LocalEngine]) -> None:
    engine = start(looping, guard=True)
    answer = engine.submit(REQUEST).future.result(60)
    assert not answer.degenerate
    assert answer.finish_reason is not FinishReason.DEGENERATE
    assert len(set(answer.token_ids)) > 20
    assert answer.tokens_saved == 600 - LEAST
    assert engine.stats().tokens_saved == answer.tokens_saved
    assert engine.submit(REQUEST).future.result(60).token_ids == answer.token_ids


def test_a_loop_that_stays_is_stopped_and_flagged(looping: Path, start: Callable[..., LocalEngine]) -> None:
    engine = start(looping, guard=True)
    # With top_k = 1 and no room for the penalty to matter the second try cannot leave the loop either.
    stuck = replace(REQUEST, params=replace(REQUEST.params, top_k=1, repetition_penalty=1e-9, do_sample=True, seed=1))
    answer = engine.submit(stuck).future.result(60)
    assert answer.degenerate
    assert answer.finish_reason is FinishReason.DEGENERATE
    assert answer.completion_tokens == LEAST
    assert answer.tokens_saved == 2 * (600 - LEAST)
    assert engine.stats().degenerate == 1


def test_text_that_was_sent_is_not_taken_back(looping: Path, start: Callable[..., LocalEngine]) -> None:
    engine = start(looping, guard=True)
    pieces: list[str] = []
    answer = engine.submit(REQUEST, on_text=pieces.append).future.result(60)
    assert answer.degenerate
    assert "".join(pieces) == answer.text
    assert answer.tokens_saved == 600 - LEAST


def test_without_the_guard_a_loop_runs_to_its_limit(looping: Path, start: Callable[..., LocalEngine]) -> None:
    answer = start(looping).submit(REQUEST).future.result(60)
    assert answer.completion_tokens == 600
    assert len(set(answer.token_ids)) == 1


@given(
    head=st.text(st.sampled_from("xyz\n"), max_size=20),
    phrase=st.text(st.sampled_from("abcd "), min_size=1, max_size=30),
    times=st.integers(REPEATED, 40),
    tail=st.integers(0, 29),
)
def test_what_repeats_at_the_end_is_kept_once(head: str, phrase: str, times: int, tail: int) -> None:
    """Also where the last time is cut short. Nothing that stood before is lost, and no repetition is left."""
    text = head + phrase * max(times, -(-SHORTEST // len(phrase))) + phrase[:tail]
    cut = without_repetition(text)
    assert text.startswith(cut)
    assert cut.startswith((head + phrase)[: len(head)].rstrip())
    assert len(cut) <= len(head) + len(phrase)


@given(st.text(max_size=SHORTEST - 1))
def test_a_short_text_stays(text: str) -> None:
    assert without_repetition(text) == text


@pytest.mark.parametrize("text", ["", "no repetition here at all", "Total ..... 12", "1 1 1 1 1", "na na na batman"])
def test_text_that_does_not_end_in_a_loop_stays(text: str) -> None:
    assert without_repetition(text) == text
