from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageSequence

from deploy.demo.documents import TILE
from deploy.demo.samples import DPI, Sample, write_samples
from tests.demo_model.chats import answer_ids


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sample, ...]:
    return write_samples(tmp_path_factory.mktemp("samples"), seed=1)


def test_the_same_seed_expects_the_same_answers(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    again = write_samples(tmp_path, seed=1)
    assert [s.expected for s in again] == [s.expected for s in samples]
    pictures = [s.path.name for s in samples if s.path.suffix == ".png"]
    folder = samples[0].path.parent
    assert all((folder / name).read_bytes() == (tmp_path / name).read_bytes() for name in pictures)


def test_another_seed_expects_other_answers(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    assert {s.expected for s in write_samples(tmp_path, seed=2)} != {s.expected for s in samples}


def test_there_are_about_forty_items_of_all_kinds(samples: tuple[Sample, ...]) -> None:
    assert {s.kind for s in samples} == {"ocr", "caption", "video_qa"}
    assert {s.path.suffix for s in samples} == {".pdf", ".tiff", ".png", ".jpg", ".webp", ".mp4"}
    assert 35 <= sum(len(s.expected) for s in samples) <= 45
    assert [s.error for s in samples if s.error] == ["corrupt_media"]


def test_pictures_are_whole_multiples_of_a_tile(samples: tuple[Sample, ...]) -> None:
    for sample in samples:
        if sample.path.suffix in {".png", ".jpg", ".webp", ".tiff"}:
            with Image.open(sample.path) as image:
                assert image.width % TILE == image.height % TILE == 0


def test_documents_have_a_page_for_each_expected_text(samples: tuple[Sample, ...]) -> None:
    for sample in samples:
        if sample.path.suffix == ".tiff":
            with Image.open(sample.path) as image:
                assert len(list(ImageSequence.Iterator(image))) == len(sample.expected)
        if sample.path.suffix == ".pdf":
            pypdfium2: Any = importlib.import_module("pypdfium2")  # it ships no types
            document = pypdfium2.PdfDocument(sample.path)
            assert len(document) == len(sample.expected)
            assert [round(side * DPI / 72) for side in document[0].get_size()] == [TILE, TILE]
            document.close()


def test_the_broken_picture_does_not_load(samples: tuple[Sample, ...]) -> None:
    with Image.open(samples[-1].path) as image, pytest.raises(OSError, match="truncated"):
        image.load()


def test_every_expected_text_can_be_spelt_by_the_model(samples: tuple[Sample, ...]) -> None:
    for sample in samples:
        for text in sample.expected:
            assert len(answer_ids(text)) == len(text) + 1
            assert text == text.strip()
