"""Samples of the joint stage: tiles, prompt, answer, dense labels, and where attention should look."""

from __future__ import annotations

import dataclasses
import math
import random

import numpy as np

from deploy.demo.clips import WAYS, Clip, random_clip
from deploy.demo.documents import TILE
from deploy.demo.layout import Shape
from deploy.demo.scenes import Scene, Thing, draw_things, random_scene
from deploy.demo.tokenizer import CAPTION_IMAGE_QUESTION, OCR_QUESTION
from tests.demo_model.chats import (
    CONTEXT,
    IMAGE_END,
    Pull,
    Sample,
    answer_ids,
    image_prompt,
    next_turn,
    video_prompt,
)
from tests.demo_model.labels import (
    THING_CLASS,
    TOKENS,
    Classes,
    Pixels,
    page_labels,
    thing_token,
    tiles_of,
)
from tests.demo_model.pages import PageKind, random_page

# Heads that are pulled, as (layer, head): the current character's token, the next one's, and the clips' chain.
OWN, NEXT = (1, 0), ((2, 0), (3, 0))
FRAME_BEFORE, FOCUS, END_BEFORE, FIRST_END, ANSWER = (0, 1), (2, 0), (3, 0), (3, 1), (4, 0)


Told = tuple[float, ...]  # a place in the sequence, then what is known there


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextItem:
    """A page: tiles uint8 [tiles, 448, 448, 3], sample, character classes of all tiles but the thumbnail."""

    tiles: Pixels
    sample: Sample
    labels: Classes


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneItem:
    """A scene with its tile and sample; `told` has (place, thing class, x, y) where a thing is
    being described, its centre in tiles.
    """

    tiles: Pixels
    sample: Sample
    scene: Scene
    told: list[Told]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipItem:
    """A clip: a tile a frame, sample, and labels at places of the sequence.

    `moving` has (place, 0 or 1) of things' tokens; `ends` has (place, thing class, way or -1, arrival) a frame,
    with thing class 0 where nothing is seen and -1 where it cannot be known yet; `told` is a scene's;
    `spots` has (place, x, y, shift across, shift down) of the focus at each frame's end, in tiles;
    `starts` has (place, token) of where the mover was in the first frame.
    """

    tiles: Pixels
    sample: Sample
    moving: list[tuple[int, int]]
    ends: list[tuple[int, int, int, int]]
    told: list[Told]
    spots: list[Told]
    starts: list[tuple[int, int]]


def _following(begin: int, targets: list[int]) -> list[Pull]:
    """Pull OWN from each answer character to its token and NEXT from the place that predicts it."""
    pulls = []
    for number, target in enumerate(targets):
        if target >= 0:
            pulls.append(Pull(layer=OWN[0], head=OWN[1], row=begin + number + 1, target=target))
            pulls += [Pull(layer=la, head=he, row=begin + number, target=target) for la, he in NEXT]
    return pulls


def text_item(draw: random.Random, kind: PageKind, *, difficulty: float, shape: Shape) -> TextItem:
    """Draw a page and the sample that reads it."""
    page = random_page(draw, kind, difficulty=difficulty)
    tiles = tiles_of(page.image)
    labels, tokens = page_labels(page)
    prompt = image_prompt(OCR_QUESTION, tiles=len(tiles), tokens_per_tile=shape.tokens_per_tile)
    first = prompt.index(CONTEXT)
    pulls = _following(len(prompt) - 1, [first + token for token in tokens])
    return TextItem(tiles=tiles, sample=Sample(prompt=prompt, answer=answer_ids(page.text), pulls=pulls), labels=labels)


def scene_item(draw: random.Random, shape: Shape) -> SceneItem:
    """Draw a scene and the sample that describes it."""
    scene = random_scene(draw)
    prompt = image_prompt(CAPTION_IMAGE_QUESTION, tiles=1, tokens_per_tile=shape.tokens_per_tile)
    first = prompt.index(CONTEXT)
    targets: list[int] = []
    described: list[Thing] = []
    if scene.caption.startswith("A "):
        sentences = [part + "." for part in scene.caption[:-1].split(". ")]
        for thing, sentence in zip(scene.things, sentences, strict=True):
            targets += [first + thing_token(thing)] * (len(sentence) + 1)
            described += [thing] * (len(sentence) + 1)
    else:  # things alike: the number comes from all of them, the rest from the first
        number = scene.caption.index(" ")
        targets = [-1] * number + [first + thing_token(scene.things[0])] * (len(scene.caption) - number)
        described = [scene.things[0]] * len(scene.caption)
    answer = answer_ids(scene.caption)
    pulls = _following(len(prompt) - 1, targets[: len(answer)])
    told = [_told(row, thing) for row, thing in enumerate(described[: len(scene.caption)], len(prompt) - 1)]
    tiles = np.asarray(draw_things(scene.things, scene.ground))[None]
    sample = Sample(prompt=prompt, answer=answer, pulls=pulls)
    return SceneItem(tiles=tiles, sample=sample, scene=scene, told=told)


def _told(row: int, thing: Thing) -> Told:
    return (row, _class_of(thing), thing.x / TILE, thing.y / TILE)


def _class_of(thing: Thing) -> int:
    return THING_CLASS[thing.shape, thing.colour, thing.size]


def _focus(clip: Clip, number: int) -> Thing | None:
    """Return the thing of a frame that matters: the mover, or the one that came last."""
    things = clip.frames[number]
    return things[clip.mover if clip.mover is not None else -1] if things else None


def _answer_target(draw: random.Random, clip: Clip, ends: list[int]) -> int:
    """Return the place from which the answer should be read; for counts, one of several by chance."""
    seen = [len(things) for things in clip.frames]
    if clip.kind == "blink":  # each coming back, and the very first token: the share tells the number
        return draw.choice([0, *(ends[i] for i in range(1, len(seen)) if seen[i] > seen[i - 1])])
    if clip.kind == "first":
        return ends[next(i for i, count in enumerate(seen) if count)]
    return ends[-1]


def clip_item(draw: random.Random, *, frames: int, shape: Shape) -> ClipItem:
    """Draw a clip and the sample that answers its question."""
    clip = random_clip(draw, frames=frames)
    prompt = video_prompt(clip.question, frames=frames, tokens_per_tile=shape.tokens_per_tile)
    ends = [place for place, token in enumerate(prompt) if token == IMAGE_END]
    pulls, moving, labels = [], [], []
    spots: list[Told] = []
    starts: list[tuple[int, int]] = []
    for number, (end, things) in enumerate(zip(ends, clip.frames, strict=True)):
        begin = end - TOKENS
        focus = _focus(clip, number)
        target = begin + thing_token(focus) if focus else end
        pulls.append(Pull(layer=FOCUS[0], head=FOCUS[1], row=end, target=target))
        way = list(WAYS).index(_way(clip)) if clip.mover is not None and number else -1
        arrival = int(len(things) > (len(clip.frames[number - 1]) if number else 0))
        known = focus is None or number > 0 or len(things) == 1
        kind = _class_of(focus) if focus else 0
        labels.append((end, kind if known else -1, way, arrival))
        if focus:
            start = _focus(clip, 0) if clip.mover is not None and number else None
            shift = (focus.x - start.x, focus.y - start.y) if start else (math.nan, math.nan)
            if start:
                starts.append((end, thing_token(start)))
            spots.append((end, *(length / TILE for length in (focus.x, focus.y, *shift))))
        if number:
            before = ends[number - 1]
            pulls.append(Pull(layer=FIRST_END[0], head=FIRST_END[1], row=end, target=ends[0]))
            pulls.append(Pull(layer=END_BEFORE[0], head=END_BEFORE[1], row=end, target=before))
            cells = {thing_token(thing) for thing in things} | set(draw.sample(range(TOKENS), 6))
            pulls += [
                Pull(layer=FRAME_BEFORE[0], head=FRAME_BEFORE[1], row=begin + c, target=before - TOKENS + c)
                for c in cells
            ]
            moving += [(begin + thing_token(t), int(i == clip.mover)) for i, t in enumerate(things)]
    answer = answer_ids(clip.answer)
    # The frames are most of the cost: further questions on the same clip come nearly free.
    more = tuple((next_turn(question), answer_ids(text)) for question, text in clip.others)
    told = []
    at = 0
    for asking, telling in ((prompt, answer), *more):
        aim = _answer_target(draw, clip, ends)
        begin = at + len(asking) - 1
        at += len(asking) + len(telling)
        rows = range(begin, at - 1)
        pulls += [Pull(layer=ANSWER[0], head=ANSWER[1], row=row, target=aim) for row in rows]
        if clip.kind != "blink":  # colours and shapes are read off the thing itself, as in a still scene
            shown = ends[-1] - TOKENS + thing_token(clip.frames[-1][0])
            pulls += [Pull(layer=la, head=he, row=row, target=shown) for row in rows for la, he in NEXT]
            told += [_told(row, clip.frames[-1][0]) for row in rows]
    tiles = np.stack([np.asarray(draw_things(things, clip.ground)) for things in clip.frames])
    sample = Sample(prompt=prompt, answer=answer, pulls=pulls, more=more)
    return ClipItem(tiles=tiles, sample=sample, moving=moving, ends=labels, told=told, spots=spots, starts=starts)


def _way(clip: Clip) -> str:
    first, last = clip.frames[0][0], clip.frames[-1][0]
    if abs(last.x - first.x) > abs(last.y - first.y):
        return "right" if last.x > first.x else "left"
    return "down" if last.y > first.y else "up"
