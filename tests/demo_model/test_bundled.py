"""The bundled checkpoint itself: its files are whole, and it reads, through transformers' classes and `generate`.

The tolerances are what the model card states, measured on the same sets with more questions.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import deploy.demo
from deploy.demo.layout import Shape, config_json, tensor_shapes
from deploy.demo.tokenizer import model_bytes
from tests.demo_model.evaluate import Question, Reader, edits, held_out_scenes, held_out_text, text_sets
from tests.demo_model.export import read_checkpoint

FOLDER = Path(deploy.demo.__file__).parent / "checkpoint"
CARD = json.loads((FOLDER / "scores.json").read_text())
PAGES = "page, DejaVu Sans Mono"
SHEETS = "page, 2 x 1 tiles"


def _measured(name: str) -> float:
    return float(next(score["value"] for score in CARD if score["name"] == name))


@pytest.fixture(scope="module")
def reader() -> Reader:
    torch.set_num_threads(1)
    return Reader(FOLDER)


def _questions(name: str, reader: Reader, count: int) -> list[Question]:
    kind, difficulty = text_sets()[name]
    return list(held_out_text(kind, count, name, difficulty, reader.shape))


def _error_rate(reader: Reader, questions: list[Question]) -> float:
    pairs = reader.answers(questions)
    return sum(edits(q.answer, given) for q, given in pairs) / sum(len(q.answer) for q, _ in pairs)


def test_every_file_has_its_listed_checksum() -> None:
    lines = [line.split("  ") for line in (FOLDER / "SHA256SUMS").read_text().splitlines()]
    assert {name for _, name in lines} == {path.name for path in FOLDER.iterdir()} - {"SHA256SUMS"}
    assert all(hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == digest for digest, name in lines)


def test_the_weights_are_small_and_finite_and_of_the_original_layout() -> None:
    assert (FOLDER / "model.safetensors").stat().st_size <= 15_000_000
    native = read_checkpoint(FOLDER, Shape())
    assert all(torch.isfinite(tensor).all() for tensor in native.values())
    assert sum(t.numel() for t in native.values()) == sum(
        int(np.prod(size)) for size in tensor_shapes(Shape()).values()
    )


def test_config_and_tokenizer_are_what_the_code_writes() -> None:
    config = json.loads((FOLDER / "config.json").read_text())
    note = config["batchsight"]["note"]
    assert config == config_json(Shape(), dtype="float16", trained=True, note=note)
    assert (FOLDER / "tokenizer.model").read_bytes() == model_bytes()


@pytest.mark.slow
def test_it_reads_held_out_pages_as_well_as_its_card_says(reader: Reader) -> None:
    # The card's own first questions: the same seed draws the same pages in the same order.
    count = next(score["count"] for score in CARD if score["name"] == PAGES)
    assert _error_rate(reader, _questions(PAGES, reader, count)) <= _measured(PAGES) + 0.005


@pytest.mark.slow
def test_it_describes_held_out_scenes_as_well_as_its_card_says(reader: Reader) -> None:
    count = next(score["count"] for score in CARD if score["name"] == "scenes")
    pairs = reader.answers(held_out_scenes(count, reader.shape))
    exact = next(score["exact"] for score in CARD if score["name"] == "scenes")
    assert sum(q.answer == given for q, given in pairs) / count >= exact - 0.02


@pytest.mark.slow
def test_tiles_in_the_wrong_order_read_wrongly(reader: Reader) -> None:
    right = _questions(SHEETS, reader, 4)
    swapped = [dataclasses.replace(q, tiles=q.tiles[[1, 0, 2]]) for q in right]
    assert _error_rate(reader, swapped) > _error_rate(reader, right) + 0.2


@pytest.mark.slow
def test_pixels_of_the_wrong_range_read_wrongly(reader: Reader) -> None:
    right = _questions(PAGES, reader, 4)
    dark = [dataclasses.replace(q, tiles=q.tiles // 4) for q in right]
    assert _error_rate(reader, dark) > _error_rate(reader, right) + 0.2
