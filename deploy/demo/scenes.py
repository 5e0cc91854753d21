"""Scenes of plain shapes and the sentences that describe them."""

from __future__ import annotations

import dataclasses
import math
import random

from PIL import Image, ImageDraw

from deploy.demo.documents import TILE, Colour

COLOURS: dict[str, Colour] = {
    "red": (215, 30, 30),
    "green": (30, 160, 50),
    "blue": (30, 60, 215),
    "yellow": (235, 210, 30),
    "black": (15, 15, 15),
    "purple": (140, 40, 170),
    "orange": (245, 140, 20),
}
SHAPES = ("circle", "square", "triangle", "star")
SIZES: dict[str, tuple[int, int]] = {"small": (24, 34), "large": (52, 66)}
PLACES = (
    "top left",
    "top",
    "top right",
    "left",
    "centre",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
)
NUMBERS = ("zero", "one", "two", "three", "four", "five")
_CELL = TILE / 3
_MARGIN = 22  # a centre stays this far inside its cell's middle, so that its place is never in doubt


@dataclasses.dataclass(frozen=True, kw_only=True)
class Thing:
    """One shape: its words, its centre and radius in pixels, and the ink it is drawn with."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    ink: Colour

    @property
    def place(self) -> str:
        """The ninth of the tile in which the centre lies."""
        return PLACES[3 * min(2, int(self.y / _CELL)) + min(2, int(self.x / _CELL))]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """Things on a plain ground, in reading order, with the caption that a right answer gives."""

    things: tuple[Thing, ...]
    ground: Colour
    caption: str


def ink_of(draw: random.Random, colour: str) -> Colour:
    """Return the named colour, slightly changed."""
    red, green, blue = (min(255, max(0, value + draw.randint(-15, 15))) for value in COLOURS[colour])
    return red, green, blue


def ground_of(draw: random.Random) -> Colour:
    """Return a nearly white ground."""
    return draw.randint(232, 255), draw.randint(232, 255), draw.randint(232, 255)


def draw_thing(pen: ImageDraw.ImageDraw, thing: Thing) -> None:
    """Draw one shape."""
    x, y, r = thing.x, thing.y, thing.radius
    if thing.shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=thing.ink)
    elif thing.shape == "square":
        pen.rectangle((x - r, y - r, x + r, y + r), fill=thing.ink)
    elif thing.shape == "triangle":
        pen.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=thing.ink)
    else:
        spokes = [(r if turn % 2 == 0 else 0.42 * r, math.pi * (turn / 5 - 0.5)) for turn in range(10)]
        points = [(x + 1.1 * s * math.cos(a), y + 1.1 * s * math.sin(a)) for s, a in spokes]
        pen.polygon(points, fill=thing.ink)


def draw_things(things: tuple[Thing, ...], ground: Colour) -> Image.Image:
    """Return a tile of 448 by 448 pixels with the things on it."""
    image = Image.new("RGB", (TILE, TILE), ground)
    pen = ImageDraw.Draw(image)
    for thing in things:
        draw_thing(pen, thing)
    return image


def random_thing(draw: random.Random, *, shape: str, colour: str, size: str, cell: int) -> Thing:
    """Place a thing in one of the nine cells, near the cell's middle and wholly on the tile."""
    radius = draw.randint(*SIZES[size])
    middle = ((cell % 3 + 0.5) * _CELL, (cell // 3 + 0.5) * _CELL)
    x, y = (
        min(TILE - 2.0 - 1.1 * radius, max(1.1 * radius + 2, at + draw.uniform(-_MARGIN, _MARGIN))) for at in middle
    )
    return Thing(shape=shape, colour=colour, size=size, x=x, y=y, radius=radius, ink=ink_of(draw, colour))


def _clear(things: list[Thing]) -> bool:
    return all(
        max(abs(a.x - b.x), abs(a.y - b.y)) > a.radius + b.radius + 4
        for number, a in enumerate(things)
        for b in things[:number]
    )


def random_scene(draw: random.Random) -> Scene:
    """Draw one to three different things, or two to five alike, and their caption."""
    alike = draw.random() < 0.3
    count = draw.randint(2, 5) if alike else draw.choice((1, 2, 2, 3))
    while True:
        kinds = [(draw.choice(SHAPES), draw.choice(tuple(COLOURS)), draw.choice(tuple(SIZES)))] * count
        if not alike:
            kinds = [
                (draw.choice(SHAPES), draw.choice(tuple(COLOURS)), draw.choice(tuple(SIZES))) for _ in range(count)
            ]
            if len({kind[:2] for kind in kinds}) < count:
                continue
        cells = sorted(draw.sample(range(9), count))
        things = [
            random_thing(draw, shape=shape, colour=colour, size=size, cell=cell)
            for (shape, colour, size), cell in zip(kinds, cells, strict=True)
        ]
        if _clear(things):
            break
    if alike:
        first = things[0]
        caption = f"{NUMBERS[count].capitalize()} {first.size} {first.colour} {first.shape}s."
    else:
        caption = " ".join(f"A {t.size} {t.colour} {t.shape} at the {t.place}." for t in things)
    return Scene(things=tuple(things), ground=ground_of(draw), caption=caption)
