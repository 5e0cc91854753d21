"""The model card's way of loading, written again from its description, as the oracle: one tile, one frame at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def tiles(image: Image.Image, *, max_tiles: int, size: int = 448) -> NDArray[np.uint8]:
    """`dynamic_preprocess` with `use_thumbnail`: uint8 `[n, size, size, 3]`."""
    width, height = image.size
    cols, rows = grid(width, height, max_tiles=max_tiles, size=size)
    resized = image.resize((cols * size, rows * size))
    parts = []
    for number in range(cols * rows):
        left, top = number % cols * size, number // cols * size
        parts.append(np.asarray(resized.crop((left, top, left + size, top + size)).convert("RGB")))
    if len(parts) != 1:
        parts.append(np.asarray(image.resize((size, size)).convert("RGB")))
    return np.stack(parts)


def grid(width: int, height: int, *, max_tiles: int, size: int = 448) -> tuple[int, int]:
    """`find_closest_aspect_ratio` over all grids of 1 to `max_tiles` tiles."""
    candidates = {
        (i, j)
        for n in range(1, max_tiles + 1)
        for i in range(1, n + 1)
        for j in range(1, n + 1)
        if 1 <= i * j <= max_tiles
    }
    best, smallest = (1, 1), float("inf")
    for i, j in sorted(candidates, key=lambda ratio: ratio[0] * ratio[1]):
        difference = abs(width / height - i / j)
        if difference < smallest:
            best, smallest = (i, j), difference
        elif difference == smallest and width * height > 0.5 * size * size * i * j:
            best = (i, j)
    return best


def indices(frames: int, fps: float, num_segments: int, bound: tuple[float, float] | None = None) -> list[int]:
    """`get_index`."""
    start, end = bound or (-100000, 100000)
    first = max(0, round(start * fps))
    last = min(round(end * fps), frames - 1)
    segment = float(last - first) / num_segments
    return [int(first + segment / 2 + np.round(segment * number)) for number in range(num_segments)]
