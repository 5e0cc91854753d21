"""Turning a page that is already cut into tiles.

A page is resized to its grid of tiles and then cut, and turning by quarter turns commutes with cutting: the tiles of
the turned page are the turned tiles in their new places, to the pixel. So nothing is fetched, decoded or resized again.
(A page that is turned first and resized then may choose another grid where two fit equally well.)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Uint8Tiles = NDArray[np.uint8]

DEGREES = (90, 180, 270)


def turn_tiles(tiles: Uint8Tiles, grid: tuple[int, int], degrees: int) -> Uint8Tiles:
    """The tiles of the page turned clockwise by `degrees` (a multiple of 90).

    `tiles`: uint8 `[n, t, t, 3]` of one image, row by row, `n` = columns x rows, or one more with the thumbnail last.
    Raises `ValueError` where tiles and grid do not fit together.
    """
    columns, rows = grid
    count, size = columns * rows, tiles.shape[1]
    if len(tiles) not in {count, count + 1} or degrees % 90:
        raise ValueError(f"{len(tiles)} tiles in a grid of {columns} x {rows} cannot be turned by {degrees} degrees")
    quarters = -(degrees // 90) % 4  # numpy turns counter-clockwise
    placed = tiles[:count].reshape(rows, columns, size, size, 3)
    turned = np.empty_like(tiles)
    each = np.rot90(placed, quarters, axes=(2, 3))  # every tile in its place
    turned[:count] = np.rot90(each, quarters, axes=(0, 1)).reshape(count, size, size, 3)
    turned[count:] = np.rot90(tiles[count:], quarters, axes=(1, 2))
    return turned
