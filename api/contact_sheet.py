"""A tile pack as one picture: what the model saw."""

from __future__ import annotations

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.media.pack import Pack, TilePack

_CELL = 224
_GAP = 4
_WIDEST = 8
_BACKGROUND = (32, 32, 36)


def draw(pack: Pack) -> bytes:
    """A PNG: the pack's tiles (or encoded images) in reading order, up to eight a row, a wider gap between images."""
    cells = _tiles(pack) if isinstance(pack, TilePack) else _images(pack_images=[image.data for image in pack.images])
    columns = min(_WIDEST, max(1, math.ceil(math.sqrt(len(cells)))))
    rows = max(1, math.ceil(len(cells) / columns))
    step = _CELL + _GAP
    sheet = Image.new("RGB", (columns * step + _GAP, rows * step + _GAP), _BACKGROUND)
    for index, cell in enumerate(cells):
        row, column = divmod(index, columns)
        left = _GAP + column * step + (_CELL - cell.width) // 2
        top = _GAP + row * step + (_CELL - cell.height) // 2
        sheet.paste(cell, (left, top))
    out = io.BytesIO()
    sheet.save(out, "PNG", compress_level=3)
    return out.getvalue()


def _tiles(pack: TilePack) -> list[Image.Image]:
    return [_fitted(Image.fromarray(_contiguous(tile), "RGB")) for tile in pack.tiles]


def _contiguous(tile: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(tile)


def _images(*, pack_images: list[bytes]) -> list[Image.Image]:
    # Our own encoder made these from pixels that had been checked; no stranger's bytes are decoded here.
    return [_fitted(Image.open(io.BytesIO(data)).convert("RGB")) for data in pack_images]


def _fitted(image: Image.Image) -> Image.Image:
    image.thumbnail((_CELL, _CELL), Image.Resampling.BILINEAR)
    return image
