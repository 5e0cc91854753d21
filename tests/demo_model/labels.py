"""Dense labels: which characters, and which thing, lie in each patch; and to which visual token a place belongs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from deploy.demo.documents import TILE, Page
from deploy.demo.scenes import COLOURS, SHAPES, SIZES, Thing
from deploy.demo.tokenizer import CHARACTERS

PATCH = 28
GRID = TILE // PATCH  # patches along a side
SIDE = GRID // 2  # visual tokens along a side, after the pixel shuffle
TOKENS = SIDE * SIDE
SLOTS = 4  # characters labelled in one patch, in reading order; the rest is dropped
# Class 0 is "no character"; newline and space are never labelled.
CHARACTER_CLASS = {c: number for number, c in enumerate(CHARACTERS.replace("\n", "").replace(" ", ""), 1)}
CHARACTER_CLASSES = len(CHARACTER_CLASS) + 1
_THINGS = [(s, c, z) for s in SHAPES for c in COLOURS for z in SIZES]
THING_CLASS = {thing: number for number, thing in enumerate(_THINGS, 1)}
THING_CLASSES = len(THING_CLASS) + 1

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Classes = np.ndarray[Any, np.dtype[np.int64]]


def tiles_of(image: Image.Image) -> Pixels:
    """Cut an image of whole tiles into uint8 [tiles, 448, 448, 3], row by row, the thumbnail last if several."""
    across, down = image.width // TILE, image.height // TILE
    boxes = [(c * TILE, r * TILE, (c + 1) * TILE, (r + 1) * TILE) for r in range(down) for c in range(across)]
    parts = [np.asarray(image.crop(box)) for box in boxes]
    if len(parts) > 1:
        parts.append(np.asarray(image.resize((TILE, TILE), Image.Resampling.BICUBIC)))
    return np.stack(parts)


def _patch_of(x: float, y: float, across: int, down: int) -> tuple[int, int, int]:
    """Return tile, patch column and patch row of a pixel, clamped into the page."""
    x, y = min(max(x, 0), across * TILE - 1), min(max(y, 0), down * TILE - 1)
    tile = int(y // TILE) * across + int(x // TILE)
    return tile, int(x % TILE // PATCH), int(y % TILE // PATCH)


def page_labels(page: Page) -> tuple[Classes, list[int]]:
    """Label a page.

    Returns:
        Character classes int64 [tiles without thumbnail, patches, SLOTS], and for each character of the text the
        index of its visual token among all tiles' tokens.
    """
    across, down = page.image.width // TILE, page.image.height // TILE
    labels = np.zeros((across * down, GRID * GRID, SLOTS), np.int64)
    filled = np.zeros((across * down, GRID * GRID), np.int64)
    tokens = []
    for character, (x, y) in zip(page.text, page.places, strict=True):
        tile, column, row = _patch_of(x, y, across, down)
        tokens.append(tile * TOKENS + row // 2 * SIDE + column // 2)
        at = (tile, row * GRID + column)
        if character in CHARACTER_CLASS and filled[at] < SLOTS:
            labels[(*at, filled[at])] = CHARACTER_CLASS[character]
            filled[at] += 1
    return labels, tokens


def thing_labels(things: Sequence[Thing]) -> Classes:
    """Return the class of the thing over each patch of a tile, int64 [patches]; 0 where there is none."""
    labels = np.zeros((GRID, GRID), np.int64)
    middles = (np.arange(GRID) + 0.5) * PATCH
    for thing in things:
        reach = max(0.8 * thing.radius, 0.6 * PATCH)
        covered = (np.abs(middles[:, None] - thing.y) <= reach) & (np.abs(middles[None] - thing.x) <= reach)
        labels[covered] = THING_CLASS[thing.shape, thing.colour, thing.size]
    return labels.reshape(-1)


def thing_token(thing: Thing) -> int:
    """Return the index of the visual token in which a thing's centre lies."""
    return int(thing.y // (2 * PATCH)) * SIDE + int(thing.x // (2 * PATCH))


def by_token(labels: Classes) -> Classes:
    """Regroup [n, patches, ...] into [n, tokens, 4, ...], the four patches of a token row by row."""
    count, rest = labels.shape[0], labels.shape[2:]
    split = labels.reshape(count, SIDE, 2, SIDE, 2, *rest)
    order = (0, 1, 3, 2, 4, *range(5, 5 + len(rest)))
    return split.transpose(order).reshape(count, TOKENS, 4, *rest)
