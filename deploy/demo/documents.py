"""Text pages as images: lines drawn in one face, and where the centre of every character came to lie.

The same drawing serves the training data, the sample files of `make demo` and the tests.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import math
import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

FONT_FOLDER = Path(__file__).parent / "fonts"
SANS = FONT_FOLDER / "DejaVuSans.ttf"
MONO = FONT_FOLDER / "DejaVuSansMono.ttf"
TILE = 448

Colour = tuple[int, int, int]
Place = tuple[float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Style:
    """How lines are set. Lengths are pixels."""

    face: Path = SANS
    size: int = 40
    line_height: int = 56
    left: int = 16
    top: int = 12
    ink: Colour = (16, 16, 16)
    paper: Colour = (255, 255, 255)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Page:
    """One drawn page.

    `places` has the centre (x, y) in pixels of each character of `text`; that of a newline is the end of its line.
    """

    image: Image.Image
    text: str
    places: tuple[Place, ...]


@functools.cache
def _face(path: Path, size: int) -> ImageFont.FreeTypeFont:
    # The basic layout engine gives the same glyph positions whether or not Raqm is installed.
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


@functools.cache
def _advance(path: Path, size: int, character: str) -> float:
    return _face(path, size).getlength(character)


def width(text: str, style: Style) -> float:
    """Return the sum of the advances of `text`, in pixels (kerning left out)."""
    return sum(_advance(style.face, style.size, character) for character in text)


def draw_lines(lines: list[str], *, columns: int = 1, rows: int = 1, style: Style) -> Page:
    """Draw `lines` from the top on a page of `columns` by `rows` tiles of 448 pixels.

    Exact multiples of a tile give the grid one expects under the tiling rule.
    """
    wide, high = columns * TILE, rows * TILE
    image = Image.new("RGB", (wide, high), style.paper)
    pen = ImageDraw.Draw(image)
    font = _face(style.face, style.size)
    places: list[Place] = []
    for number, line in enumerate(lines):
        base = style.top + number * style.line_height + int(0.95 * style.size)
        pen.text((style.left, base), line, font=font, fill=style.ink, anchor="ls")
        y = base - 0.3 * style.size
        ends = [font.getlength(line[:count]) for count in range(len(line) + 1)]  # with kerning
        places += [(style.left + (begin + end) / 2, y) for begin, end in itertools.pairwise(ends)]
        places.append((min(style.left + ends[-1] + 0.3 * style.size, wide - 1), y))
    return Page(image=image, text="\n".join(lines), places=tuple(places[:-1]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wear:
    """What scanning does to a page: skew in degrees, blur radius and noise deviation, JPEG quality (0: none)."""

    skew: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    jpeg: int = 0
    seed: int = 0


def random_wear(draw: random.Random) -> Wear:
    """Draw light wear: up to two degrees of skew, a little blur and noise, sometimes JPEG."""
    return Wear(
        skew=draw.uniform(-2, 2) if draw.random() < 0.5 else 0.0,
        blur=draw.uniform(0.2, 0.9) if draw.random() < 0.4 else 0.0,
        noise=draw.uniform(2, 10) if draw.random() < 0.4 else 0.0,
        jpeg=draw.randint(55, 90) if draw.random() < 0.4 else 0,
        seed=draw.getrandbits(32),
    )


def worn(page: Page, wear: Wear, *, paper: Colour) -> Page:
    """Return the page as a scanner might give it, with the characters' places turned along with it."""
    image, places = page.image, page.places
    if wear.skew:
        image = image.rotate(wear.skew, Image.Resampling.BICUBIC, fillcolor=paper)
        cos, sin = math.cos(math.radians(wear.skew)), math.sin(math.radians(wear.skew))
        mid_x, mid_y = image.width / 2, image.height / 2
        places = tuple(
            (mid_x + (x - mid_x) * cos + (y - mid_y) * sin, mid_y - (x - mid_x) * sin + (y - mid_y) * cos)
            for x, y in places
        )
    if wear.blur:
        image = image.filter(ImageFilter.GaussianBlur(wear.blur))
    if wear.noise:
        image = _noisy(image, wear.noise, wear.seed)
    if wear.jpeg:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=wear.jpeg)
        image = Image.open(io.BytesIO(file.getvalue())).convert("RGB")
    return dataclasses.replace(page, image=image, places=places)


def _noisy(image: Image.Image, deviation: float, seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).normal(0, deviation, (image.height, image.width, 1))
    pixels = np.asarray(image).astype(np.float32) + noise
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
