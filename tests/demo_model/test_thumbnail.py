"""The thumbnail of a page of several tiles, through the product's own tiling and engine with the bundled weights.

The bundled model was always shown a thumbnail after the tiles: an engine that loses, moves or blackens it reads badly.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import deploy.demo
from deploy.demo.documents import Page
from deploy.demo.scoring import edit_distance
from deploy.demo.tokenizer import OCR_QUESTION
from pipelines.engine.chat import ChatModel
from pipelines.engine.load import load_engine
from pipelines.engine.options import EngineOptions
from pipelines.media.images import cut_tiles
from tests.demo_model.evaluate import text_sets
from tests.demo_model.labels import Pixels, tiles_of
from tests.demo_model.pages import random_page

FOLDER = Path(deploy.demo.__file__).parent / "checkpoint"
SHEETS = "page, 2 x 1 tiles"
PAGES = 4
# Measured on the bundled weights, the harm is at least 0.2 (missing and first far more); half of it must show.
HARM = 0.1


@pytest.fixture(scope="module")
def pages() -> list[Page]:
    kind, difficulty = text_sets()[SHEETS]
    draw = random.Random(f"held out {SHEETS}")
    return [random_page(draw, dataclasses.replace(kind, held_out=True), difficulty=difficulty) for _ in range(PAGES)]


@pytest.fixture(scope="module")
def model() -> Iterator[ChatModel]:
    engine = load_engine(FOLDER, EngineOptions(device="cpu", dtype="float32", guard=False))
    yield ChatModel(engine)
    engine.close()


def _error_rate(model: ChatModel, pages: list[Page], change: Callable[[Pixels], Pixels]) -> float:
    tiles = [change(cut_tiles(page.image, max_tiles=12)) for page in pages]
    answers = model.batch_chat(
        None,
        np.concatenate(tiles),
        num_patches_list=[len(each) for each in tiles],
        questions=[f"<image>\n{OCR_QUESTION}"] * len(pages),
        generation_config={"max_new_tokens": 260, "do_sample": False},
    )
    assert isinstance(answers, list)
    wrong = sum(edit_distance(answer, page.text) for answer, page in zip(answers, pages, strict=True))
    return wrong / sum(len(page.text) for page in pages)


@pytest.fixture(scope="module")
def right(model: ChatModel, pages: list[Page]) -> float:
    return _error_rate(model, pages, lambda tiles: tiles)


def test_the_products_tiles_are_the_ones_the_model_was_trained_on(pages: list[Page]) -> None:
    for page in pages:
        assert np.array_equal(cut_tiles(page.image, max_tiles=12), tiles_of(page.image))


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda tiles: tiles[:-1], id="missing"),
        pytest.param(lambda tiles: tiles[[2, 0, 1]], id="first"),
        pytest.param(lambda tiles: np.concatenate([tiles[:-1], 0 * tiles[-1:]]), id="black"),
    ],
)
def test_a_broken_thumbnail_reads_worse(
    model: ChatModel, pages: list[Page], right: float, change: Callable[[Pixels], Pixels]
) -> None:
    assert _error_rate(model, pages, change) > right + HARM
