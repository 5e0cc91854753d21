from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from deploy.demo.random_checkpoint import write_random_checkpoint
from pipelines.engine.load import load_engine
from pipelines.engine.options import EngineOptions
from pipelines.engine.service import LocalEngine
from pipelines.engine.types import Tiles
from tests.unit.engine.harness import Bench, load_bench

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def reference() -> Path:
    """The recorded reference of the original code; its absence fails in CI and skips elsewhere."""
    named = os.environ.get("BATCHSIGHT_REFERENCE")
    folder = Path(named) if named else ROOT.parent / "shared" / "reference" / "tiny_v2"
    if not (folder / "reference.safetensors").exists():
        reason = f"no recorded reference: set BATCHSIGHT_REFERENCE or put it at {folder}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint in the original layout, with a tokenizer."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    write_random_checkpoint(folder, seed=7)
    return folder


@pytest.fixture(scope="session")
def start() -> Iterator[Callable[..., LocalEngine]]:
    """Start engines on a folder in float64 without guard, closed at the end."""
    engines: list[LocalEngine] = []

    def make(folder: Path, **options: object) -> LocalEngine:
        values: dict[str, object] = {"dtype": "float64", "guard": False, "page_size": 8, "device": "cpu"}
        engine = load_engine(folder, EngineOptions(**{**values, **options}))  # type: ignore[arg-type]
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture(scope="session")
def engine(checkpoint: Path, start: Callable[..., LocalEngine]) -> LocalEngine:
    """One engine that answers every request alike, for tests that do not change it."""
    return start(checkpoint)


@pytest.fixture(scope="session")
def bench(checkpoint: Path) -> Bench:
    """The tiny model, for cores of any size."""
    return load_bench(checkpoint)


def tiles(*counts: int, seed: int = 0, size: int = 56) -> Tiles:
    """Random images of so many tiles each; equal seeds give equal images."""
    draw = np.random.default_rng(seed)
    pixels = draw.integers(0, 256, (sum(counts), size, size, 3), dtype=np.uint8)
    digests = tuple(f"{seed}-{number}" for number in range(len(counts)))
    return Tiles(pixels=pixels, counts=counts, digests=digests)
