"""Scores of a checkpoint folder on held-out renders, always through `generate`.

Held out are the seeds, a tenth of the word list, the layouts drawn from those seeds, and the FreeFont family.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import InternVLForConditionalGeneration

from deploy.demo.clips import KINDS, random_clip
from deploy.demo.documents import MONO, SANS
from deploy.demo.layout import Shape
from deploy.demo.scenes import PLACES, draw_things, random_scene
from deploy.demo.tokenizer import CAPTION_IMAGE_QUESTION, EOS_ID, OCR_QUESTION
from tests.demo_model.chats import END, decode, image_prompt, video_prompt
from tests.demo_model.export import read_checkpoint
from tests.demo_model.labels import Pixels, tiles_of
from tests.demo_model.network import DEVIATION, MEAN, new_network
from tests.demo_model.pages import FACES, UNSEEN_FACES, PageKind, random_page

BATCH = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """Tiles uint8 [tiles, 448, 448, 3], the prompt's ids, and the right answer."""

    tiles: Pixels
    prompt: list[int]
    answer: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """One line of the table: the share of errors (text) or of right facts (scenes and clips)."""

    name: str
    measure: str
    value: float
    exact: float
    count: int
    seconds: float


def edits(left: str, right: str) -> int:
    """Return the Levenshtein distance."""
    row = list(range(len(right) + 1))
    for number, a in enumerate(left, 1):
        previous, row[0] = row[0], number
        for at, b in enumerate(right, 1):
            previous, row[at] = row[at], min(row[at] + 1, row[at - 1] + 1, previous + (a != b))
    return row[-1]


def facts(caption: str) -> dict[str, str]:
    """Return what a caption claims: how many things, and of each its size, colour, shape and place."""
    found: dict[str, str] = {}
    sentences = [part.strip().rstrip(".") for part in caption.split(". ") if part.strip()]
    if len(sentences) == 1 and not sentences[0].startswith("A "):
        return dict(zip(("number", "size", "colour", "shape"), sentences[0].split(), strict=False))
    found["number"] = str(len(sentences))
    for number, sentence in enumerate(sentences):
        head, _, place = sentence.partition(" at the ")
        for name, word in zip(("size", "colour", "shape"), head.split()[1:], strict=False):
            found[f"{name} {number}"] = word
        if place in PLACES:
            found[f"place {number}"] = place
    return found


def held_out_text(kind: PageKind, count: int, seed: str, difficulty: float, shape: Shape) -> Iterator[Question]:
    """Draw pages of held-out words; the first ones are the same however many are asked for."""
    draw = random.Random(f"held out {seed}")
    for _ in range(count):
        page = random_page(draw, dataclasses.replace(kind, held_out=True), difficulty=difficulty)
        tiles = tiles_of(page.image)
        prompt = image_prompt(OCR_QUESTION, tiles=len(tiles), tokens_per_tile=shape.tokens_per_tile)
        yield Question(tiles=tiles, prompt=prompt, answer=page.text)


def held_out_scenes(count: int, shape: Shape) -> Iterator[Question]:
    """Draw scenes from a seed that training never uses."""
    draw = random.Random("held out scenes")
    prompt = image_prompt(CAPTION_IMAGE_QUESTION, tiles=1, tokens_per_tile=shape.tokens_per_tile)
    for _ in range(count):
        scene = random_scene(draw)
        tiles = np.asarray(draw_things(scene.things, scene.ground))[None]
        yield Question(tiles=tiles, prompt=prompt, answer=scene.caption)


def held_out_clips(kind: str, frames: int, count: int, shape: Shape) -> Iterator[Question]:
    """Draw clips of one kind from a seed that training never uses."""
    draw = random.Random(f"held out clips {kind} {frames}")
    for _ in range(count):
        clip = random_clip(draw, frames=frames, kind=kind)
        tiles = np.stack([np.asarray(draw_things(things, clip.ground)) for things in clip.frames])
        prompt = video_prompt(clip.question, frames=frames, tokens_per_tile=shape.tokens_per_tile)
        yield Question(tiles=tiles, prompt=prompt, answer=clip.answer)


class Reader:
    """Answers questions with a checkpoint folder's weights through transformers' own classes, greedily."""

    def __init__(self, folder: Path, *, device: str = "cpu") -> None:
        self.shape = Shape()
        self.device = torch.device(device)
        self.network: InternVLForConditionalGeneration = new_network(self.shape, seed=0)
        self.network.load_state_dict(read_checkpoint(folder, self.shape))
        torch.nn.Module.to(self.network, self.device)
        self.network.train(mode=False)

    @torch.no_grad()
    def _answer(self, questions: list[Question]) -> list[str]:
        pixels = torch.from_numpy(np.concatenate([q.tiles for q in questions])).permute(0, 3, 1, 2).float() / 255
        pixels = (pixels - MEAN.view(3, 1, 1)) / DEVIATION.view(3, 1, 1)
        ids = torch.tensor([q.prompt for q in questions], device=self.device)
        out = self.network.generate(  # type: ignore[misc]  # its self is a protocol
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=pixels.to(self.device),
            do_sample=False,
            max_new_tokens=max(len(q.answer) for q in questions) + 20,
            eos_token_id=END,
            pad_token_id=EOS_ID,
        )
        return [decode(row) for row in out[:, ids.shape[1] :].tolist()]

    def answers(self, questions: Iterable[Question]) -> list[tuple[Question, str]]:
        """Return every question with its answer; questions of one prompt length share a batch."""
        groups: dict[int, list[Question]] = {}
        for question in questions:
            groups.setdefault(len(question.prompt), []).append(question)
        out: list[tuple[Question, str]] = []
        for length, group in groups.items():
            size = max(1, min(BATCH, 8000 // length))
            for at in range(0, len(group), size):
                part = group[at : at + size]
                out += zip(part, self._answer(part), strict=True)
        return out


def _score_text(name: str, pairs: list[tuple[Question, str]], seconds: float) -> Score:
    wrong = sum(edits(q.answer, given) for q, given in pairs)
    exact = sum(q.answer == given for q, given in pairs) / len(pairs)
    total = sum(len(q.answer) for q, _ in pairs)
    return Score(name=name, measure="CER", value=wrong / total, exact=exact, count=len(pairs), seconds=seconds)


def _score_facts(name: str, pairs: list[tuple[Question, str]], seconds: float) -> Score:
    right = total = 0
    for question, given in pairs:
        wanted, found = facts(question.answer), facts(given)
        total += len(wanted)
        right += sum(found.get(key) == value for key, value in wanted.items())
    exact = sum(q.answer == given for q, given in pairs) / len(pairs)
    return Score(name=name, measure="facts", value=right / total, exact=exact, count=len(pairs), seconds=seconds)


def text_sets() -> dict[str, tuple[PageKind, float]]:
    """Return each text set's page kind and difficulty. Plain sets are unworn; `worn` ones have all of it."""
    plain = 0.75  # words, the rest numbers and random characters
    sets: dict[str, tuple[PageKind, float]] = {}
    for face, label in ((SANS, "DejaVu Sans"), (MONO, "DejaVu Sans Mono"), (FACES[2], "Liberation Sans")):
        sets[f"line, {label}"] = (PageKind(lines=1, most=40, plain=plain, face=face, sizes=(32, 48)), 0.0)
        sets[f"page, {label}"] = (PageKind(most=240, plain=plain, face=face, sizes=(32, 48)), 0.0)
    sets["page, all trained faces, worn"] = (PageKind(most=240, plain=plain, sizes=(32, 48)), 1.0)
    sets["page, 28 to 31 pixels"] = (PageKind(most=280, plain=plain, face=SANS, sizes=(28, 31)), 0.0)
    for name, columns, rows in (("2 x 1 tiles", 2, 1), ("1 x 2 tiles", 1, 2), ("2 x 2 tiles", 2, 2)):
        sets[f"page, {name}"] = (
            PageKind(columns=columns, rows=rows, most=360, plain=plain, face=SANS, sizes=(34, 48)),
            0.0,
        )
    sets["page, 2 x 3 tiles, 20 lines"] = (
        PageKind(columns=2, rows=3, lines=20, most=440, plain=plain, face=SANS, sizes=(36, 48)),
        0.0,
    )
    for face in UNSEEN_FACES:
        sets[f"page, unseen {face.stem}"] = (
            PageKind(most=240, plain=plain, face=face, sizes=(34, 48)),
            0.0,
        )
    return sets


def evaluate(folder: Path, *, count: int, device: str = "cpu", only: str = "") -> Iterator[Score]:
    """Yield the score of each set whose name contains `only`, with `count` questions in each."""
    reader = Reader(folder, device=device)
    for name, (page_kind, difficulty) in text_sets().items():
        if only in name:
            begin = time.monotonic()
            pairs = reader.answers(held_out_text(page_kind, count, name, difficulty, reader.shape))
            yield _score_text(name, pairs, time.monotonic() - begin)
    if only in "scenes":
        begin = time.monotonic()
        yield _score_facts("scenes", reader.answers(held_out_scenes(2 * count, reader.shape)), time.monotonic() - begin)
    for frames in (8, 16, 32):
        for kind in KINDS:
            name = f"clip, {kind}, {frames} frames"
            if only in name:
                begin = time.monotonic()
                pairs = reader.answers(held_out_clips(kind, frames, max(4, 8 * count // frames), reader.shape))
                right = sum(q.answer == given for q, given in pairs) / len(pairs)
                yield Score(
                    name=name,
                    measure="right",
                    value=right,
                    exact=right,
                    count=len(pairs),
                    seconds=time.monotonic() - begin,
                )
