"""Several devices, on a CPU: two gloo processes in tensor parallel, and the card's layer split."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from pipelines.engine.errors import CheckpointError, EngineStopped
from pipelines.engine.layers import connect, placer, split_layers
from pipelines.engine.load import choose_devices, choose_parallel, load_engine
from pipelines.engine.options import EngineOptions
from pipelines.engine.parallel import check_divisible
from pipelines.engine.scheduler import Limits
from pipelines.engine.service import LocalEngine
from pipelines.engine.types import EngineRequest, GenerationParams
from tests.unit.engine.conftest import tiles
from tests.unit.engine.harness import Bench, run

OPTIONS = EngineOptions(device="cpu,cpu", dtype="float64", guard=False, page_size=8, parallel="tensor", threads=1)


@pytest.fixture(autouse=True)
def _no_group_is_left() -> Iterator[None]:
    """A killed rank leaves this process in a group by itself; other tests of this process must not find it."""
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.fixture
def pair(checkpoint: Path) -> Iterator[LocalEngine]:
    engine = load_engine(checkpoint, OPTIONS)
    yield engine
    engine.close()


def asked(number: int) -> EngineRequest:
    return EngineRequest(
        request_id=str(number),
        question="Read " * (1 + number % 3),
        media=tiles(1 + number % 3, seed=number % 4) if number % 5 else None,
        params=GenerationParams(max_new_tokens=10 + number, repetition_penalty=1.0 + 0.1 * (number % 2)),
    )


def test_two_ranks_give_the_same_tokens_and_a_dead_rank_gives_everything_back(
    pair: LocalEngine, engine: LocalEngine
) -> None:
    requests = [asked(number) for number in range(10)]
    wanted = [engine.submit(each).future.result(60).token_ids for each in requests]
    together = [handle.future.result(120) for handle in [pair.submit(each) for each in requests]]
    assert [each.token_ids for each in together] == wanted
    sampled = replace(asked(1), params=GenerationParams(max_new_tokens=20, do_sample=True, seed=5))
    assert pair.submit(sampled).future.result(60).token_ids == engine.submit(sampled).future.result(60).token_ids
    assert pair.healthy()
    long = [pair.submit(replace(asked(n), params=GenerationParams(max_new_tokens=5000))) for n in range(4)]
    os.kill(_rank_of(pair), signal.SIGKILL)
    for handle in long:
        with pytest.raises(EngineStopped):
            handle.future.result(60)
    assert not pair.healthy()


def _rank_of(engine: LocalEngine) -> int:
    """The process of rank 1: the only child of this process that runs the module."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
                parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            if b"pipelines.engine.rank" in words and parent == os.getpid():
                return int(folder.name)
    raise AssertionError("rank 1 does not run")


def test_heads_that_do_not_divide_are_refused(bench: Bench) -> None:
    with pytest.raises(CheckpointError, match="do not divide by 3"):
        check_divisible(bench.config, 3)


def test_the_layer_split_is_the_cards() -> None:
    """The card's `split_model` for 48 layers: the first GPU counts as half a GPU, and holds the last layer."""
    assert split_layers(48, 2) == [0] * 16 + [1] * 31 + [0]
    assert [split_layers(48, 4).count(device) for device in range(4)] == [8, 14, 14, 12]
    assert split_layers(2, 2) == [0, 0]


def test_tensors_follow_their_layer() -> None:
    devices = [torch.device("cpu"), torch.device("meta")]
    place = placer([0, 1, 0], devices)
    assert place("model.language_model.layers.1.mlp.up_proj.weight") == devices[1]
    assert place("model.language_model.layers.2.mlp.up_proj.weight") == devices[0]
    for name in ("lm_head.weight", "model.vision_tower.embeddings.cls_token", "model.language_model.norm.weight"):
        assert place(name) == devices[0]


def test_layers_that_are_spread_compute_the_same(checkpoint: Path, bench: Bench) -> None:
    """`cpu` and `cpu:0` are two devices to the code that moves things, and one to the arithmetic."""
    from tests.unit.engine.harness import load_bench

    limits = Limits(slots=2, pages=60, page_size=8, context=8192, max_rows=64, tile_budget=4, embedding_tiles=8)
    spread = load_bench(checkpoint)
    connect(spread.model, [0, 1], [torch.device("cpu"), torch.device("cpu", 0)])
    sequences = [each.sequence(asked(3), 0, limits) for each in (bench, spread)]
    answers = [run(each.core(limits), [one])[one] for each, one in zip((bench, spread), sequences, strict=True)]
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("device", "parallel", "wanted"),
    [
        ("cpu", "auto", "none"),
        ("cpu,cpu", "auto", "tensor"),
        ("cpu,cpu,cpu", "auto", "layers"),
        ("cpu,cpu", "layers", "layers"),
        ("cpu,cpu", "replica", "none"),
    ],
)
def test_the_choice_between_the_ways(checkpoint: Path, device: str, parallel: str, wanted: str) -> None:
    options = EngineOptions(device=device, parallel=parallel)  # type: ignore[arg-type]
    assert choose_parallel(options, choose_devices(options), checkpoint) == wanted


def test_devices_are_read_as_they_are_written() -> None:
    assert choose_devices(EngineOptions(device="cuda:0,1")) == [torch.device("cuda", 0), torch.device("cuda", 1)]
    assert choose_devices(EngineOptions(device="cpu")) == [torch.device("cpu")]


def test_quantised_slices_are_refused(checkpoint: Path, start: Callable[..., LocalEngine]) -> None:
    with pytest.raises(CheckpointError, match="slices"):
        load_engine(checkpoint, replace(OPTIONS, quantization="fp8"))
