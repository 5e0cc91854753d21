"""Short synthetic clips with a question and its answer, as lists of things for each frame, and as MP4 files."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import av
import numpy as np

from deploy.demo.documents import TILE, Colour
from deploy.demo.scenes import COLOURS, SHAPES, SIZES, Thing, draw_things, ground_of, ink_of
from deploy.demo.tokenizer import CAPTION_VIDEO_QUESTION

WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
KINDS = ("way", "colour", "shape", "blink", "first", "caption")
MOST_BLINKS = 4
# A clip's file repeats each frame this often, so that as many evenly spaced samples as frames meet each frame once.
REPEATS = 4
FRAME_RATE = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """Frames as things on a plain ground, one question and its answer, and other questions they answer.

    `mover` is the index, in every frame, of the thing that moves; None in clips where nothing does.
    """

    kind: str
    frames: tuple[tuple[Thing, ...], ...]
    ground: Colour
    question: str
    answer: str
    others: tuple[tuple[str, str], ...] = ()
    mover: int | None = None


def _thing(draw: random.Random, shape: str, colour: str) -> Thing:
    size = draw.choice(tuple(SIZES))
    radius = draw.randint(*SIZES[size])
    low, high = 1.1 * radius + 2, TILE - 1.1 * radius - 2
    x, y = draw.uniform(low, high), draw.uniform(low, high)
    return Thing(shape=shape, colour=colour, size=size, x=x, y=y, radius=radius, ink=ink_of(draw, colour))


def _apart(a: Thing, b: Thing) -> bool:
    return max(abs(a.x - b.x), abs(a.y - b.y)) > a.radius + b.radius + 6


def _moving(draw: random.Random, kind: str, count: int) -> Clip:
    """One thing moves straight; in half of the clips, and in all that ask which, another stands still."""
    shape, other_shape = draw.sample(SHAPES, 2)
    colour, other_colour = draw.sample(tuple(COLOURS), 2)
    way = draw.choice(tuple(WAYS))
    across, down = WAYS[way]
    while True:
        start = _thing(draw, shape, colour)
        step = draw.uniform(120, 330) / (count - 1)
        path = [
            dataclasses.replace(start, x=start.x + across * step * i, y=start.y + down * step * i) for i in range(count)
        ]
        low, high = 1.1 * start.radius + 2, TILE - 1.1 * start.radius - 2
        if not (low <= path[-1].x <= high and low <= path[-1].y <= high):
            continue
        if kind in {"way", "caption"} and draw.random() < 0.5:
            frames: tuple[tuple[Thing, ...], ...] = tuple((thing,) for thing in path)
            break
        still = _thing(draw, other_shape, other_colour)
        if all(_apart(still, thing) for thing in path):
            frames = tuple((thing, still) for thing in path)
            break
    asked = {
        "way": (f"Which way does the {shape} move?", way),
        "colour": ("What colour is the moving shape?", colour),
        "shape": ("Which shape is moving?", shape),
        "caption": (CAPTION_VIDEO_QUESTION, f"A {colour} {shape} moves {way}."),
    }
    question, answer = asked.pop(kind)
    others = list(asked.values())
    draw.shuffle(others)
    return Clip(
        kind=kind,
        frames=frames,
        ground=ground_of(draw),
        question=question,
        answer=answer,
        others=tuple(others),
        mover=0,
    )


def _blinking(draw: random.Random, count: int) -> Clip:
    """One thing vanishes and comes back a few times; every stretch is at least one frame long."""
    shape = draw.choice(SHAPES)
    thing = _thing(draw, shape, draw.choice(tuple(COLOURS)))
    blinks = draw.randint(1, min(MOST_BLINKS, (count - 1) // 2))
    cuts = sorted(draw.sample(range(1, count), 2 * blinks))
    hidden = {f for start, end in zip(cuts[::2], cuts[1::2], strict=True) for f in range(start, end)}
    frames = tuple(() if number in hidden else (thing,) for number in range(count))
    question = f"How many times does the {shape} blink?"
    return Clip(kind="blink", frames=frames, ground=ground_of(draw), question=question, answer=str(blinks))


def _appearing(draw: random.Random, count: int) -> Clip:
    """Two things come one after the other and stay."""
    while True:
        shapes, colours = draw.sample(SHAPES, 2), draw.sample(tuple(COLOURS), 2)
        first, second = (_thing(draw, shape, colour) for shape, colour in zip(shapes, colours, strict=True))
        if _apart(first, second):
            break
    begin = draw.randint(0, count // 2 - 1)
    join = draw.randint(begin + 1, count - 1)
    frames = tuple(() if number < begin else (first,) if number < join else (first, second) for number in range(count))
    return Clip(
        kind="first",
        frames=frames,
        ground=ground_of(draw),
        question="Which shape appears first?",
        answer=first.shape,
    )


def random_clip(draw: random.Random, *, frames: int, kind: str | None = None) -> Clip:
    """Draw a clip of `frames` frames (at least 4) and of one of `KINDS`."""
    kind = kind or draw.choice(KINDS)
    if kind == "blink":
        return _blinking(draw, frames)
    if kind == "first":
        return _appearing(draw, frames)
    return _moving(draw, kind, frames)


def write_mp4(clip: Clip, path: Path) -> None:
    """Write a clip as H.264 of 448 by 448 pixels, each frame `REPEATS` times, `FRAME_RATE` frames a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FRAME_RATE)
        stream.width = stream.height = TILE
        stream.pix_fmt = "yuv420p"
        # One thread and a fixed quality: the same file on every machine with the same encoder.
        stream.options = {"crf": "12", "preset": "veryfast", "threads": "1"}
        for things in clip.frames:
            frame = av.VideoFrame.from_ndarray(np.asarray(draw_things(things, clip.ground)), format="rgb24")
            for _ in range(REPEATS):
                container.mux(stream.encode(frame))
        container.mux(stream.encode())
