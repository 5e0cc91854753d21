"""Whether a page is blank: whether anything on it could be text.

The rule, at about 144 dpi (larger pages are reduced to it): a pixel is ink where it differs from the paper around it by
`CONTRAST` grey levels, or by more on a noisy scan. Ink that hangs together is a mark, and one mark makes a page not
blank. No marks are: specks (up to 8 pixels, 1.4 mm; a capital of 8 points has 12), ruled lines and scanner streaks,
punch holes near the edge, and bands along the edge (shadows, the lid). The paper is a running median, so shading is
paper.

In doubt a page is not blank: that costs one answer of the model, and the other error loses a page. So the exceptions
are narrow, pictures under `SMALL` pixels have none but specks, and the strips that are cut off as bands are searched
too. Ink fainter than `CONTRAST` (show-through, watermarks) is not seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFilter

REFERENCE = 1684
"""The long side of A4 at 144 dpi, in pixels."""
CONTRAST = 32
SMALL = 400
_NOISIEST = 64  # the contrast asked for grows with the noise, up to this
_NOISE = 7.4  # times the median deviation: five standard deviations of Gaussian noise
_BLOCK = 16  # pixels; the paper is the median over five by five blocks
_CELL = 2  # pixels; a cell is inked where half of it is
_SPECK = 8 // _CELL
_FAR = 3  # pixels that are one from afar
_WRITTEN = 1 / 32  # the share of ink, from afar, of a page that is certainly written
_SEAM = 2  # cells
_CROWDED = 1 / 64  # more inked cells than this are no dirt
_HOLE = (0.012, 0.035)  # of the page's long side: 3.6 to 10 mm on A4
_HOLE_FROM_EDGE = 0.08
_HOLE_FILL = 0.68  # a disc fills 0.79 of its box; letters fill less
_LINE_LENGTH = 0.25  # of the page's side
_BAND_DEPTH, _BAND_LENGTH = 0.06, 0.15
_STRIP = 0.1  # of the page's side: as deep as bands are looked for
_NARROW = 24  # pixels; a band of less is not searched
_RIM = 0.03  # as wide as the way from a band to the paper may be
_STEP = 4  # pixels of a line of the search for bands

_NEAR = tuple((down, right) for down in range(-2, 3) for right in range(-2, 3))

Box = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class _Mark:
    """Ink that hangs together: its box in pixels, right and bottom not included, and the share of it that is inked."""

    left: int
    top: int
    right: int
    bottom: int
    fill: float

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top


def is_blank(picture: Image.Image) -> bool:
    """True where an `L` or `RGB` picture bears nothing that could be text."""
    factor = round(max(picture.size) / REFERENCE)
    if factor > 1:
        picture = picture.reduce(factor)
    return not _is_written(picture) and not any(_is_marked(plane) for plane in _planes(picture))


def _is_written(picture: Image.Image) -> bool:
    """A glance that most pages end with: much ink, seen from afar, inside of where bands and holes may be."""
    width, height = picture.size
    left, top = int(width * _STRIP), int(height * _STRIP)
    far = picture.convert("L").reduce(_FAR, (left, top, width - left, height - top))
    if min(far.size) < _BLOCK:
        return False
    deviation = ImageChops.difference(far, _paper_of(far, _BLOCK // _FAR))
    return sum(deviation.histogram()[CONTRAST:]) > far.width * far.height * _WRITTEN


def _planes(picture: Image.Image) -> Iterator[Image.Image]:
    """The darkest of the channels, in which colours on white are dark; then the lightest, for colours on black."""
    if picture.mode == "L":
        yield picture
        return
    red, green, blue = picture.convert("RGB").split()
    yield ImageChops.darker(ImageChops.darker(red, green), blue)
    yield ImageChops.lighter(ImageChops.lighter(red, green), blue)


def _is_marked(plane: Image.Image) -> bool:
    page = plane.size
    if min(page) < SMALL:
        return _bears_text(plane, (0, 0, *page), page=None)
    return any(_bears_text(plane, box, page=page) for box in _parts(plane))


def _bears_text(plane: Image.Image, box: Box, *, page: tuple[int, int] | None) -> bool:
    part = plane.crop(box)
    inked = _inked(part)
    if page is not None:
        # The seam to a band, or the rim of the glass: nothing can be read there.
        inked[:_SEAM], inked[-_SEAM:], inked[:, :_SEAM], inked[:, -_SEAM:] = False, False, False, False
    # Only what might be dirt is looked at mark by mark; a written page ends here.
    width, height = page or part.size
    if np.count_nonzero(inked) > max(width * height / _CELL**2 * _CROWDED, 64):
        return True
    for mark in _marks(inked):
        if max(mark.width, mark.height) <= _SPECK * _CELL:
            continue
        if page is None or not (_is_line(mark, page) or _is_band(mark, part.size, page) or _is_hole(mark, box, page)):
            return True
    return False


def _inked(part: Image.Image) -> NDArray[np.bool_]:
    """The cells with ink, `[rows, columns]`."""
    deviation = ImageChops.difference(part, _paper_of(part, _BLOCK))
    middle = int(np.searchsorted(np.cumsum(deviation.histogram()), part.width * part.height / 2))
    least = min(_NOISIEST, max(CONTRAST, round(_NOISE * middle)))
    ink = deviation.point([255 * (level >= least) for level in range(256)])
    inked: NDArray[np.bool_] = np.asarray(ink.reduce(_CELL)) >= 255 // 2
    return inked


def _paper_of(part: Image.Image, block: int) -> Image.Image:
    """The shade around each pixel: the median over five by five blocks."""
    blocks = part.reduce(block).filter(ImageFilter.MedianFilter(5))
    whole = (0, 0, part.width / block, part.height / block)
    return blocks.resize(part.size, Image.Resampling.BILINEAR, box=whole)


def _marks(inked: NDArray[np.bool_]) -> Iterator[_Mark]:
    """Groups of cells with at most one empty cell between neighbours: the letters of a word are one mark."""
    left = {(int(row), int(column)) for row, column in np.argwhere(inked)}
    while left:
        group = [left.pop()]
        for row, column in group:  # grows while it is walked
            for near in ((row + down, column + right) for down, right in _NEAR):
                if near in left:
                    left.remove(near)
                    group.append(near)
        rows, columns = [row for row, _ in group], [column for _, column in group]
        top, bottom, first, last = min(rows), max(rows) + 1, min(columns), max(columns) + 1
        yield _Mark(
            left=first * _CELL,
            top=top * _CELL,
            right=last * _CELL,
            bottom=bottom * _CELL,
            fill=len(group) / ((bottom - top) * (last - first)),
        )


def _is_line(mark: _Mark, page: tuple[int, int]) -> bool:
    """A ruled line, or the streak that dust leaves in a scanner: long, straight, too thin for the smallest text."""
    if mark.width > mark.height:
        return mark.height <= 2 * _CELL and mark.width >= _LINE_LENGTH * page[0]
    return mark.width <= 2 * _CELL and mark.height >= _LINE_LENGTH * page[1]


def _is_band(mark: _Mark, part: tuple[int, int], page: tuple[int, int]) -> bool:
    """What is left of a shadow: at the edge of its part of the page, shallow and long, or too thin for text."""
    near, thin = (_SEAM + 2) * _CELL, 2 * _CELL
    beside = mark.left <= near or mark.right >= part[0] - near
    above = mark.top <= near or mark.bottom >= part[1] - near
    tall, wide = mark.height >= _BAND_LENGTH * page[1], mark.width >= _BAND_LENGTH * page[0]
    return (beside and (mark.width <= thin or (tall and mark.width <= _BAND_DEPTH * page[0]))) or (
        above and (mark.height <= thin or (wide and mark.height <= _BAND_DEPTH * page[1]))
    )


def _is_hole(mark: _Mark, box: Box, page: tuple[int, int]) -> bool:
    """A filled disc of a punch's size, near an edge of the page."""
    side = max(page)
    if not all(_HOLE[0] * side <= each <= _HOLE[1] * side for each in (mark.width, mark.height)):
        return False
    x, y = box[0] + (mark.left + mark.right) / 2, box[1] + (mark.top + mark.bottom) / 2
    from_edge = min(x, y, page[0] - x, page[1] - y)
    return 0.75 <= mark.width / mark.height <= 4 / 3 and mark.fill >= _HOLE_FILL and from_edge <= _HOLE_FROM_EDGE * side


def _parts(plane: Image.Image) -> list[Box]:
    """The page without the bands along its edges, and those bands: each is searched by itself.

    A band begins at the edge, and most of each of its lines is not of the paper's shade.
    """
    width, height = plane.size
    small = np.asarray(plane.reduce(_STEP)).astype(np.int16)
    off = np.abs(small - int(np.median(small))) >= CONTRAST
    columns, rows = off.mean(0), off.mean(1)
    (left, end_left), (right, end_right) = _depth(columns), _depth(columns[::-1])
    (top, end_top), (bottom, end_bottom) = _depth(rows), _depth(rows[::-1])
    bands = [
        (0, 0, left, height),
        (width - right, 0, width, height),
        (end_left, 0, width - end_right, top),
        (end_left, height - bottom, width - end_right, height),
    ]
    inner = (end_left, end_top, width - end_right, height - end_bottom)
    return [inner, *(box for box in bands if min(box[2] - box[0], box[3] - box[1]) >= _NARROW)]


def _depth(shares: NDArray[np.float64]) -> tuple[int, int]:
    """Pixels of a band at the beginning of `shares` (each line's share that is not paper), without and with its rim."""
    most = int(len(shares) * _STRIP)
    core = next((line for line in range(most) if shares[line] < 0.5), most)
    if not core:
        return 0, 0
    rim = range(core, min(most, core + int(len(shares) * _RIM)))
    end = next((line for line in rim if shares[line] < 0.1), rim.stop)
    return (core - 1) * _STEP, (end + 1) * _STEP
