"""Pictures to tiles, by the model card's rule.

A picture is resized (Pillow BICUBIC) to the grid of tiles whose aspect ratio is closest, and cut row by row; a
thumbnail of the whole comes last when there is more than one tile. Pixels equal those of the card's
`dynamic_preprocess` on the same Pillow. What is saved against the card's way: one resize and one copy instead of a
crop, a convert and a float tensor for each tile; greyscale stays one channel until the tiles are written (the three
channels would be equal at every step); and nothing is normalised here, for that happens on the device.

Rejected: JPEG draft mode, `reducing_gap` and other resizers; each changes pixels.
"""

from __future__ import annotations

import io
import warnings
from functools import lru_cache
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageChops, ImageFile, UnidentifiedImageError

from pipelines.jobs.errors import CorruptMedia, InvalidParameter, MediaError, MediaTooLarge, UnsupportedMedia
from pipelines.media.limits import MediaLimits

Uint8Tiles = NDArray[np.uint8]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF")
MAX_TILES = 40
TILE = 448


@lru_cache(maxsize=128)
def _grids(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    # The card sorts a set by area alone, so grids of equal area keep the order of the set; the same set is built here,
    # for on a tie of both aspect ratio and area that order decides.
    grids = {
        (cols, rows)
        for n in range(min_tiles, max_tiles + 1)
        for cols in range(1, n + 1)
        for rows in range(1, n + 1)
        if min_tiles <= cols * rows <= max_tiles
    }
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))


def target_grid(width: int, height: int, *, max_tiles: int, min_tiles: int = 1, tile: int = TILE) -> tuple[int, int]:
    """`(columns, rows)` of the grid whose aspect ratio is closest to `width / height`.

    On a tie the larger grid wins when the picture has more than half of its area (the card's
    `find_closest_aspect_ratio`). Raises `InvalidParameter` unless 1 <= min_tiles <= max_tiles.
    """
    if not 1 <= min_tiles <= max_tiles:
        raise InvalidParameter(f"max_tiles must be at least {max(min_tiles, 1)}; it is {max_tiles}.", param="max_tiles")
    aspect, area = width / height, width * height
    best, best_difference = (1, 1), float("inf")
    for cols, rows in _grids(min_tiles, max_tiles):
        difference = abs(aspect - cols / rows)
        if difference < best_difference:
            best, best_difference = (cols, rows), difference
        elif difference == best_difference and area > 0.5 * tile * tile * cols * rows:
            best = (cols, rows)
    return best


def tile_count(width: int, height: int, *, max_tiles: int, tile: int = TILE, thumbnail: bool = True) -> int:
    """How many tiles `cut_tiles` will make of a picture of this size."""
    cols, rows = target_grid(width, height, max_tiles=max_tiles, tile=tile)
    return cols * rows + (thumbnail and cols * rows > 1)


def cut_tiles(image: Image.Image, *, max_tiles: int, tile: int = TILE, thumbnail: bool = True) -> Uint8Tiles:
    """Tiles of an `RGB` or `L` picture: uint8 `[n, tile, tile, 3]`, RGB, row by row, the thumbnail last when n > 1."""
    if image.mode not in {"RGB", "L"}:
        image = image.convert("RGB")
    image = _as_grey(image)
    cols, rows = target_grid(*image.size, max_tiles=max_tiles, tile=tile)
    n = cols * rows
    extra = 1 if thumbnail and n > 1 else 0
    tiles = np.empty((n + extra, tile, tile, 3), np.uint8)
    grid = np.asarray(image.resize((cols * tile, rows * tile), Image.Resampling.BICUBIC))
    grid = grid.reshape(rows, tile, cols, tile, -1)  # the last axis is 3, or 1 and then broadcast into the tiles
    tiles[:n].reshape(rows, cols, tile, tile, 3)[:] = grid.transpose(0, 2, 1, 3, 4)
    if extra:
        small = np.asarray(image.resize((tile, tile), Image.Resampling.BICUBIC))
        tiles[n] = small.reshape(tile, tile, -1)
    return tiles


def _as_grey(image: Image.Image) -> Image.Image:
    """The picture in one channel where its three are equal: scans and most rendered pages, at half of the cost."""
    if image.mode != "RGB":
        return image
    # A glance at a few thousand pixels spares colourful pictures the whole comparison.
    if not _is_grey(image.resize((64, 64), Image.Resampling.NEAREST)) or not _is_grey(image):
        return image
    return image.getchannel(0)


def _is_grey(image: Image.Image) -> bool:
    red, green, blue = (image.getchannel(number) for number in range(3))
    return not any(ImageChops.difference(red, other).getbbox() for other in (green, blue))


def open_image(data: bytes, limits: MediaLimits, *, keep_grey: bool = False) -> Image.Image:
    """Decode the first frame of a JPEG, PNG, WebP, GIF or TIFF to an upright `RGB` picture.

    EXIF orientation is applied, CMYK and other spaces are converted, 16 bits are cut to the upper 8 (what Pillow does
    to 16-bit colour), transparency is laid over white. With `keep_grey` a grey picture stays `L`, which `cut_tiles`
    takes. Raises `UnsupportedMedia`, `MediaTooLarge` (bytes or pixels, before decoding), `CorruptMedia`.
    """
    if len(data) > limits.image_bytes:
        raise MediaTooLarge(f"The image has {len(data):,} bytes; at most {limits.image_bytes:,} are accepted.")
    with reading("image"):
        image = open_lazily(io.BytesIO(data), limits)
        return finish(image, keep_grey=keep_grey)


class reading:  # noqa: N801 - a context manager reads as a verb
    """Map whatever a Python decoder raises on hostile bytes to the tree: the one boundary for Pillow's errors.

    Pillow's warnings are silenced, for nobody reads them in a decoder child; that of a bomb is an error.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._warnings = warnings.catch_warnings()

    def __enter__(self) -> None:
        """Set the filters."""
        self._warnings.__enter__()
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raise the mapped error from its cause."""
        self._warnings.__exit__(kind, error, trace)
        if error is None or isinstance(error, (MediaError, InvalidParameter, MemoryError)):
            return
        if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
            raise MediaTooLarge(f"The {self._what} has too many pixels to be decoded.") from error
        if isinstance(error, UnidentifiedImageError):
            raise UnsupportedMedia(f"The {self._what} is not a JPEG, PNG, WebP, GIF or TIFF.") from error
        if isinstance(error, Exception):  # Pillow's decoders raise nearly any class on damaged bytes
            raise CorruptMedia(f"The {self._what} is damaged or cut short and does not decode.") from error


def open_lazily(file: io.BytesIO | io.BufferedReader, limits: MediaLimits) -> ImageFile.ImageFile:
    """Read the header alone and check the size. Raises `MediaTooLarge`; call it inside `reading`."""
    image = Image.open(file, formats=FORMATS)
    check_pixels(*image.size, limits)
    return image


def check_pixels(width: int, height: int, limits: MediaLimits) -> None:
    """Raise `MediaTooLarge` or `CorruptMedia` for a size that must not be decoded."""
    if width < 1 or height < 1:
        raise CorruptMedia(f"The image is {width} x {height} pixels.")
    if width * height > limits.pixels:
        raise MediaTooLarge(
            f"The image has {width} x {height} pixels; at most {limits.pixels / 1e6:.0f} megapixels are accepted."
        )


def finish(image: Image.Image, *, keep_grey: bool = False) -> Image.Image:
    """Load a lazily opened picture and bring it to upright `RGB` (or `L`). Call it inside `reading`."""
    image.load()
    orientation = orientation_of(
        image
    )  # after loading: PNG may keep EXIF behind the pixels, TIFF is turned by Pillow itself
    picture = _to_rgb(image)
    if picture.mode == "L" and not keep_grey:
        picture = picture.convert("RGB")
    return picture.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else picture


# EXIF 2.32, section 4.6.5, tag Orientation: what brings each value upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation of a loaded picture, 1 to 8; 1 where there is none that can be read."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # noqa: BLE001 - damaged EXIF raises anything, and a picture is readable without it
        return 1
    return value if isinstance(value, int) else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode.startswith("I") or mode == "F":
        return Image.fromarray(_deep_to_8_bits(np.asarray(image)))
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        white.alpha_composite(picture)
        return white.convert("RGB")
    if mode == "1":
        return image.convert("L")
    return image if mode in {"L", "RGB"} else image.convert("RGB")


def _deep_to_8_bits(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Integers are taken as 16 bits; floats as 0..1 where none is larger than 1, else as 0..255."""
    if values.dtype.kind == "f":
        finite = np.nan_to_num(values.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
        scale = 255.0 if finite.size == 0 or float(finite.max()) <= 1.0 else 1.0
        scaled: NDArray[np.uint8] = np.clip(finite * scale + 0.5, 0, 255).astype(np.uint8)
        return scaled
    cut: NDArray[np.uint8] = (np.clip(values.astype(np.int64), 0, 65535) >> 8).astype(np.uint8)
    return cut
