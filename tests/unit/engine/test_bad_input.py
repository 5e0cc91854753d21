"""A bad request fails alone, with a code; everybody else gets what they get without it."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.engine.errors import (
    BadRequest,
    EmptyPrompt,
    EngineOutOfMemory,
    EngineStopped,
    NonFiniteLogits,
    PromptTooLong,
    RequestCancelled,
)
from pipelines.engine.plan import StepPlan
from pipelines.engine.request import Bounds, prepare
from pipelines.engine.runner import Runner, Ticket
from pipelines.engine.scheduler import Limits
from pipelines.engine.service import LocalEngine
from pipelines.engine.types import EngineRequest, GenerationParams, Tiles
from pipelines.jobs.errors import EngineError
from tests.unit.engine.conftest import tiles
from tests.unit.engine.harness import Bench, run

LIMITS = Limits(slots=4, pages=200, page_size=8, context=8192, max_rows=512, tile_budget=8, embedding_tiles=64)


def ask(number: int, question: str = "Read it.", **changes: object) -> EngineRequest:
    values: dict[str, object] = {
        "request_id": f"r{number}",
        "question": f"{question} {number}",
        "system": "",
        "params": GenerationParams(max_new_tokens=16),
    }
    return EngineRequest(**{**values, **changes})  # type: ignore[arg-type]


def test_nan_logits_fail_their_request_alone(
    checkpoint: Path, engine: LocalEngine, start: Callable[..., LocalEngine], tmp_path: Path
) -> None:
    """The embedding of `#` is NaN: requests with a # fail, and those that take over their pages do not."""
    folder = tmp_path / "poisoned"
    shutil.copytree(checkpoint, folder)
    (folder / "SHA256SUMS").unlink()
    weights = load_file(folder / "model.safetensors")
    weights["language_model.model.tok_embeddings.weight"][engine.tokenizer.encode(["#"])[0]] = torch.nan
    save_file(weights, folder / "model.safetensors")
    poisoned = start(folder, max_slots=3, kv_cache_bytes=150_000)
    assert poisoned.stats().kv_pages_total < 40
    good = [ask(number, media=tiles(2, seed=number)) for number in range(6)]
    wanted = [engine.submit(each).future.result(60).token_ids for each in good]
    for _ in range(3):
        bad = [poisoned.submit(ask(number, "A # and a #.", media=tiles(2, seed=number))) for number in range(3)]
        handles = [poisoned.submit(each) for each in good]
        for handle in bad:
            with pytest.raises(NonFiniteLogits) as caught:
                handle.future.result(60)
            assert caught.value.code == "non_finite_logits"
        assert [handle.future.result(60).token_ids for handle in handles] == wanted
    assert poisoned.stats().kv_pages_used == 0
    assert poisoned.healthy()


class _Cramped(Runner):
    """Runs out of memory on more than 60 prefill rows or on any tile of a white image."""

    def launch(self, plan: StepPlan) -> Ticket:
        long = any(size > 60 for size in plan.queries[plan.decodes :])
        if long or any(item.pixels.min() == 255 for item in plan.encode):
            raise torch.OutOfMemoryError("out of memory")
        return super().launch(plan)


def test_running_out_of_memory_fails_the_request_that_causes_it(bench: Bench) -> None:
    white = Tiles(pixels=np.full((1, 56, 56, 3), 255, dtype=np.uint8), counts=(1,), digests=("white",))
    good = [ask(number, media=tiles(1, seed=number)) for number in range(6)]
    bad = [ask(10, "a long question " * 8), ask(11, media=white)]
    requests = [*good[:3], *bad, *good[3:]]
    sequences = [bench.sequence(each, number, LIMITS) for number, each in enumerate(requests)]
    answers = run(bench.core(LIMITS, runner=_Cramped), sequences)
    alone = [bench.sequence(each, 0, LIMITS) for each in requests]
    for request, sequence, single in zip(requests, sequences, alone, strict=True):
        if request in bad:
            assert isinstance(answers[sequence], EngineOutOfMemory)
        else:
            assert answers[sequence] == run(bench.core(LIMITS), [single])[single]


class _Broken(Runner):
    """Fails on a question mark, in decoding too."""

    trigger = -1

    def launch(self, plan: StepPlan) -> Ticket:
        if self.trigger in plan.tokens:
            raise ValueError("a defect that one request meets")
        return super().launch(plan)


def test_any_other_failure_of_a_step_is_blamed_on_one_request(bench: Bench) -> None:
    core = bench.core(LIMITS, runner=_Broken)
    core.runner.trigger = bench.tokenizer.encode(["?"])[0]  # type: ignore[attr-defined]
    sequences = [bench.sequence(ask(n, "Why?" if n == 2 else "Go."), n, LIMITS) for n in range(5)]
    answers = run(core, sequences)
    assert [isinstance(answers[each], EngineError) for each in sequences] == [False, False, True, False, False]
    assert core.scheduler.pool.used == 0


class _FlakyDecode(Runner):
    """Every decode step fails until the sequences are separated."""

    def launch(self, plan: StepPlan) -> Ticket:
        if plan.decodes > 1:
            raise ValueError("two of them together")
        return super().launch(plan)


def test_decoding_sequences_that_only_fail_together_end_in_a_bounded_number_of_steps(bench: Bench) -> None:
    core = bench.core(LIMITS, runner=_FlakyDecode)
    sequences = [bench.sequence(ask(n), n, LIMITS) for n in range(3)]
    for sequence in sequences:
        core.add(sequence)
    for _ in range(500):
        for event in core.step():
            if not event.sequence.done and event.sequence.generated >= event.sequence.limit:
                core.remove(event.sequence)
        if not core.busy:
            break
    assert not core.busy


class _Lost(Runner):
    def launch(self, plan: StepPlan) -> Ticket:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_a_lost_device_gives_everything_back(bench: Bench) -> None:
    engine = bench.engine(bench.core(LIMITS, runner=_Lost))
    handle = engine.submit(ask(1))
    with pytest.raises(EngineStopped):
        handle.future.result(30)
    assert not engine.healthy()
    with pytest.raises(EngineStopped):
        engine.submit(ask(2))
    engine.close()


class _Stuck(Runner):
    release: threading.Event

    def launch(self, plan: StepPlan) -> Ticket:
        self.release.wait(30)
        return super().launch(plan)


def test_the_watchdog_sees_a_stall_and_close_does_not_wait_for_it(bench: Bench) -> None:
    core = bench.core(LIMITS, runner=_Stuck)
    core.runner.release = threading.Event()  # type: ignore[attr-defined]
    engine = bench.engine(core, stall_seconds=0.05)
    time.sleep(0.1)
    assert engine.healthy(), "an idle engine is not a stalled one"
    handle = engine.submit(ask(1))
    deadline = time.monotonic() + 20
    while engine.healthy():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    engine.close(timeout=0.05)
    with pytest.raises(EngineStopped):
        handle.future.result(1)
    core.runner.release.set()  # type: ignore[attr-defined]


def test_a_client_that_vanishes_in_mid_stream_frees_its_pages(engine: LocalEngine) -> None:
    alone = engine.submit(ask(1)).future.result(60)
    gone = threading.Event()

    def held(_text: str) -> None:  # the engine waits: the answer must not be over before its client leaves
        gone.wait(60)

    handle = engine.submit(ask(0, params=GenerationParams(max_new_tokens=4000)), on_text=held)
    stream = handle.stream()
    assert next(stream)
    neighbour = engine.submit(ask(1))
    del stream
    handle.cancel()
    gone.set()
    with pytest.raises(RequestCancelled):
        handle.future.result(60)
    assert neighbour.future.result(60).token_ids == alone.token_ids


def test_a_callback_that_raises_ends_its_own_request(engine: LocalEngine) -> None:
    def broken(text: str) -> None:
        raise ValueError(text)

    handle = engine.submit(ask(1), on_text=broken)
    neighbour = engine.submit(ask(2))
    with pytest.raises(EngineError):
        handle.future.result(60)
    assert neighbour.future.result(60).completion_tokens > 0


def test_ten_thousand_tiles_are_too_long_before_anything_is_computed(engine: LocalEngine) -> None:
    pixels = np.broadcast_to(np.zeros(1, dtype=np.uint8), (10_000, 56, 56, 3))
    with pytest.raises(PromptTooLong) as caught:
        engine.submit(ask(1, media=Tiles(pixels=pixels, counts=(10_000,), digests=("x",))))
    assert "40000 tokens" in caught.value.message


def test_a_prompt_that_the_cache_can_never_hold_is_refused_at_once(
    checkpoint: Path, start: Callable[..., LocalEngine]
) -> None:
    small = start(checkpoint, kv_cache_bytes=40_000)
    with pytest.raises(PromptTooLong):
        small.submit(ask(1, "word " * 60))
    answer = small.submit(ask(2, params=GenerationParams(max_new_tokens=5000))).future.result(60)
    assert answer.finish_reason == "length"
    assert answer.prompt_tokens + answer.completion_tokens == small.info.context_length


@pytest.mark.parametrize(
    "media",
    [
        Tiles(pixels=np.zeros((0, 56, 56, 3), dtype=np.uint8), counts=(), digests=()),
        Tiles(pixels=np.zeros((1, 56, 56, 3), dtype=np.uint8), counts=(0, 1), digests=("a", "b")),
        Tiles(pixels=np.zeros((2, 56, 56, 3), dtype=np.uint8), counts=(1,), digests=("a",)),
        Tiles(pixels=np.zeros((1, 56, 56, 3), dtype=np.uint8), counts=(1,), digests=()),
        Tiles(pixels=np.zeros((1, 448, 448, 3), dtype=np.uint8), counts=(1,), digests=("a",)),
        Tiles(pixels=np.zeros((1, 56, 56, 3), dtype=np.float32), counts=(1,), digests=("a",)),
    ],
)
def test_tiles_that_contradict_themselves_are_refused(engine: LocalEngine, media: Tiles) -> None:
    with pytest.raises(BadRequest):
        engine.submit(ask(1, media=media))


def test_an_image_without_placeholder_is_refused(engine: LocalEngine) -> None:
    with pytest.raises(BadRequest):
        engine.submit(ask(1, "<image>", media=tiles(1, 1)))


def test_an_empty_prompt_is_refused(engine: LocalEngine) -> None:
    with pytest.raises(EmptyPrompt):
        engine.submit(replace(ask(1), question=" \n"))


def test_ids_out_of_the_vocabulary_are_refused(bench: Bench) -> None:
    config = replace(bench.config, text=replace(bench.config.text, vocabulary=100))
    with pytest.raises(BadRequest):
        prepare(ask(1), number=1, tokenizer=bench.tokenizer, config=config, bounds=Bounds(context=999, cache=999))
