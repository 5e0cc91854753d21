"""Turning tiles is cutting the turned page."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.media.images import cut_tiles, target_grid
from pipelines.media.turn import DEGREES, turn_tiles

TILE = 28
TRANSPOSE = {90: Image.Transpose.ROTATE_270, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_90}


def cut(page: Image.Image, grid: tuple[int, int]) -> np.ndarray:
    """The tiles of a page whose size is its grid's, straight from the pixels."""
    pixels = np.asarray(page)
    columns, rows = grid
    return np.stack(
        [
            pixels[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
            for row in range(rows)
            for column in range(columns)
        ]
    )


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(20, 400),
    height=st.integers(20, 400),
    max_tiles=st.integers(1, 12),
    degrees=st.sampled_from(DEGREES),
    seed=st.integers(0, 9),
)
def test_turned_tiles_are_the_tiles_of_the_turned_resized_page(
    width: int, height: int, max_tiles: int, degrees: int, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    page = Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))
    tiles = cut_tiles(page, max_tiles=max_tiles, tile=TILE)
    columns, rows = target_grid(width, height, max_tiles=max_tiles, tile=TILE)
    resized = page.resize((columns * TILE, rows * TILE), Image.Resampling.BICUBIC)
    turned = turn_tiles(tiles, (columns, rows), degrees)
    upended = (columns, rows) if degrees == 180 else (rows, columns)
    count = columns * rows
    assert np.array_equal(turned[:count], cut(resized.transpose(TRANSPOSE[degrees]), upended))
    if len(tiles) > count:
        thumbnail = Image.fromarray(tiles[-1]).transpose(TRANSPOSE[degrees])
        assert np.array_equal(turned[-1], np.asarray(thumbnail))


@pytest.mark.parametrize("degrees", DEGREES)
def test_a_page_that_needs_no_resizing_is_turned_exactly(degrees: int) -> None:
    """The tiles equal those that PREPARE would have cut of the upright page; its thumbnail differs by roundings."""
    draw = np.random.default_rng(1)
    page = Image.fromarray(draw.integers(0, 256, (3 * TILE, 2 * TILE, 3), dtype=np.uint8))
    tiles = cut_tiles(page, max_tiles=6, tile=TILE)
    again = cut_tiles(page.transpose(TRANSPOSE[degrees]), max_tiles=6, tile=TILE)
    turned = turn_tiles(tiles, (2, 3), degrees)
    assert np.array_equal(turned[:6], again[:6])
    assert np.abs(turned[6].astype(int) - again[6].astype(int)).max() <= 4


@given(degrees=st.sampled_from(DEGREES), grid=st.tuples(st.integers(1, 4), st.integers(1, 4)))
def test_four_quarters_are_a_whole(degrees: int, grid: tuple[int, int]) -> None:
    columns, rows = grid
    tiles = np.random.default_rng(2).integers(0, 256, (columns * rows, 4, 4, 3), dtype=np.uint8)
    once = turn_tiles(tiles, grid, degrees)
    back = turn_tiles(once, grid if degrees == 180 else (rows, columns), 360 - degrees)
    assert np.array_equal(back, tiles)


def test_tiles_of_another_grid_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be turned"):
        turn_tiles(np.zeros((5, 4, 4, 3), np.uint8), (2, 1), 90)
