from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.demo_model.card import AIMS, reached, write_card


def _scores(**values: float) -> list[dict[str, Any]]:
    names = {
        "pages": "page, DejaVu Sans",
        "tiles": "page, 2 x 1 tiles",
        "unseen": "page, unseen FreeSans",
        "scenes": "scenes",
        "clips": "clip, way, 8 frames",
    }
    return [{"name": names[n], "measure": "CER", "value": v, "exact": 0.5, "count": 4} for n, v in values.items()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(bytes(2_000_000))
    joint = {"stage": "joint", "samples": 1234, "seconds": 600, "page.right": 0.9, "scene.right": 0.8}
    (tmp_path / "log.jsonl").write_text(json.dumps(joint) + "\n")
    return tmp_path


def _card(folder: Path, scores: list[dict[str, Any]], history: Path | None = None) -> str:
    (folder / "scores.json").write_text(json.dumps(scores))
    write_card(folder, folder / "log.jsonl", seed=7, commit="abc1234", history=history)
    return (folder / "README.md").read_text()


def test_an_aim_is_the_mean_over_its_sets_and_an_unmeasured_one_is_left_out() -> None:
    scores = [*_scores(pages=0.01), {**_scores(pages=0.03)[0], "name": "page, DejaVu Sans Mono"}]
    assert reached(scores) == {AIMS[0][0]: pytest.approx(0.02)}


def test_the_card_names_every_aim_that_is_missed(folder: Path) -> None:
    card = _card(folder, _scores(pages=0.02, tiles=0.5, unseen=0.09, scenes=0.9, clips=0.8))
    assert "single-tile text in DejaVu Sans 2.0 % (aim: at most 1 %)" in card
    assert "clips of 8 to 32 frames 80.0 % (aim: at least 90 %)" in card
    assert card.count("(aim:") == len(AIMS)


def test_the_card_says_when_no_aim_is_missed(folder: Path) -> None:
    card = _card(folder, _scores(pages=0.01, tiles=0.03, unseen=0.08, scenes=0.95, clips=0.9))
    assert "Aims that are not met by this file: none." in card


def test_the_card_tells_a_warm_start_from_a_run_from_nothing(folder: Path) -> None:
    scores = _scores(pages=0.1, tiles=0.1, unseen=0.1, scenes=0.1, clips=0.1)
    assert "began with an earlier file" in _card(folder, scores)
    log = (folder / "log.jsonl").read_text()
    (folder / "log.jsonl").write_text(json.dumps({"stage": "vision", "samples": 5678, "seconds": 60}) + "\n" + log)
    assert "5,678 tiles in 1 minutes of processor time" in _card(folder, scores)


def test_what_else_was_done_goes_into_the_card_as_it_is(folder: Path) -> None:
    history = folder.parent / "history.md"
    history.write_text("Tried {this}.\n")
    scores = _scores(pages=0.1, tiles=0.1, unseen=0.1, scenes=0.1, clips=0.1)
    assert "\nTried {this}.\n" in _card(folder, scores, history)
