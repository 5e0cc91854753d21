from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.engine.prompt import build_parts
from pipelines.engine.service import LocalEngine
from pipelines.engine.types import EngineRequest, FinishReason, GenerationParams
from tests.unit.engine.conftest import tiles
from tests.unit.engine.plain_model import PlainModel

ASK = EngineRequest(request_id="r", question="Read it.", params=GenerationParams(max_new_tokens=30))


def test_a_seed_gives_the_same_answer_alone_and_in_a_crowd(engine: LocalEngine) -> None:
    params = GenerationParams(max_new_tokens=30, do_sample=True, temperature=1.5, seed=42)
    asked = [replace(ASK, request_id=str(n), question=f"Number {n}", params=replace(params, seed=n)) for n in range(12)]
    alone = [engine.submit(each).future.result(60).token_ids for each in asked]
    crowd = [handle.future.result(60).token_ids for handle in [engine.submit(each) for each in asked]]
    assert crowd == alone
    other = engine.submit(replace(asked[0], params=replace(params, seed=99))).future.result(60)
    assert other.token_ids != alone[0]


def test_without_a_seed_sampled_answers_differ(engine: LocalEngine) -> None:
    free = replace(ASK, params=GenerationParams(max_new_tokens=30, do_sample=True, temperature=2.0))
    answers = {engine.submit(free).future.result(60).token_ids for _ in range(3)}
    assert len(answers) == 3


def test_a_stop_string_cuts_the_answer(engine: LocalEngine) -> None:
    whole = engine.submit(ASK).future.result(60)
    stop = whole.text[5:7]
    cut = engine.submit(replace(ASK, params=replace(ASK.params, stop=(stop,)))).future.result(60)
    assert cut.finish_reason is FinishReason.STOP
    assert cut.text == whole.text[: whole.text.index(stop)].strip()
    assert cut.completion_tokens < whole.completion_tokens


def test_the_end_of_turn_token_stops_the_answer_and_is_not_in_it(
    engine: LocalEngine, checkpoint: Path, start: Callable[..., LocalEngine], tmp_path: Path
) -> None:
    """A model that always prefers `<|im_end|>` gives an empty answer with its log-probability."""
    folder = tmp_path / "silent"
    shutil.copytree(checkpoint, folder)
    (folder / "SHA256SUMS").unlink()
    weights = load_file(folder / "model.safetensors")
    # Every hidden state becomes a positive vector, which the row of the stop token alone answers.
    for name, tensor in weights.items():
        if name.startswith("language_model.model.layers") and name.endswith(("wo.weight", "w2.weight")):
            tensor[:] = 0.0
        if name.endswith(("tok_embeddings.weight", "model.norm.weight")):
            tensor[:] = 1.0
    weights["language_model.output.weight"][:] = 0.0
    weights["language_model.output.weight"][engine.tokenizer.stop_token] = 1.0
    save_file(weights, folder / "model.safetensors")
    answer = start(folder).submit(ASK).future.result(60)
    assert (answer.text, answer.token_ids, answer.finish_reason) == ("", (), FinishReason.STOP)
    assert answer.mean_logprob is not None


def test_the_mean_log_probability_is_that_of_the_answer(engine: LocalEngine, checkpoint: Path) -> None:
    answer = engine.submit(ASK).future.result(60)
    plain = PlainModel(checkpoint)
    ids = engine.tokenizer.encode(build_parts(ASK.question, history=(), counts=(), tokens_per_tile=4))
    ended = [engine.tokenizer.stop_token] if answer.finish_reason is FinishReason.STOP else []
    generated = [*answer.token_ids, *ended]
    logits = plain.text(plain.embed([*ids, *generated], None, -1))[len(ids) - 1 : -1]
    wanted = logits.log_softmax(-1).gather(1, torch.tensor(generated)[:, None]).mean()
    assert answer.mean_logprob == pytest.approx(float(wanted), abs=1e-6)


def test_history_is_shared_with_the_turn_before(engine: LocalEngine) -> None:
    first = engine.submit(replace(ASK, question="Read it slowly and well.", media=tiles(3, seed=50))).future.result(60)
    second = engine.submit(
        replace(
            ASK,
            question="And then?",
            history=(("<image>\nRead it slowly and well.", first.text),),
            media=tiles(3, seed=50),
        )
    ).future.result(60)
    assert second.cached_tokens > 12


def test_times_and_counts_are_told(engine: LocalEngine) -> None:
    answer = engine.submit(replace(ASK, media=tiles(2, 1, seed=60), question="<image><image>")).future.result(60)
    assert answer.tiles == 3
    assert 0 <= answer.queue_seconds <= answer.first_token_seconds <= answer.total_seconds
    assert 0 < answer.device_seconds <= answer.total_seconds
    assert answer.mean_logprob is not None


def test_stats_count_upwards(engine: LocalEngine) -> None:
    before = engine.stats()
    handles = [engine.submit(replace(ASK, media=tiles(1, seed=70 + n))) for n in range(4)]
    answers = [handle.future.result(60) for handle in handles]
    after = engine.stats()
    assert after.generated_tokens - before.generated_tokens >= sum(each.completion_tokens for each in answers)
    assert after.tiles - before.tiles == 4
    assert after.prefilled_tokens > before.prefilled_tokens
    assert after.steps > before.steps
    assert after.kv_pages_total == before.kv_pages_total > 0
