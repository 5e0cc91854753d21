"""Tiling by the card's rule, and pictures of every mode brought to upright RGB."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from pipelines.jobs.errors import CorruptMedia, InvalidParameter, MediaTooLarge, UnsupportedMedia
from pipelines.media.images import cut_tiles, open_image, target_grid, tile_count
from pipelines.media.limits import MediaLimits
from tests.unit.media import card
from tests.unit.media.samples import encoded, noise

LIMITS = MediaLimits()


@given(st.integers(1, 20_000), st.integers(1, 20_000), st.integers(1, 40))
@settings(max_examples=200)
def test_the_grid_is_the_cards(width: int, height: int, max_tiles: int) -> None:
    cols, rows = target_grid(width, height, max_tiles=max_tiles)
    assert (cols, rows) == card.grid(width, height, max_tiles=max_tiles)
    assert 1 <= cols * rows <= max_tiles


@pytest.mark.parametrize("side", [300, 316, 317, 448, 633, 634, 900, 2000])
def test_a_square_grows_with_its_area(side: int) -> None:
    # The area rule: 2x2 from more than half of its pixels, 3x3 likewise.
    cols, rows = target_grid(side, side, max_tiles=12)
    assert cols == rows
    assert cols == (1 if side <= 633 else 2 if side <= 950 else 3)


def test_no_tiles_are_refused() -> None:
    with pytest.raises(InvalidParameter):
        target_grid(10, 10, max_tiles=0)


@pytest.mark.parametrize(
    ("size", "max_tiles"),
    [((1654, 2339), 12), ((640, 480), 12), ((100, 900), 40), ((901, 100), 6), ((448, 448), 12), ((37, 41), 1)],
)
def test_tiles_equal_the_cards_to_the_pixel(size: tuple[int, int], max_tiles: int) -> None:
    image = noise(*size)
    ours = cut_tiles(image, max_tiles=max_tiles)
    assert np.array_equal(ours, card.tiles(image, max_tiles=max_tiles))
    assert len(ours) == tile_count(*size, max_tiles=max_tiles)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 9), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_small_tiles_equal_the_cards_too(width: int, height: int, max_tiles: int, seed: int) -> None:
    image = noise(width, height, seed)
    assert np.array_equal(
        cut_tiles(image, max_tiles=max_tiles, tile=56), card.tiles(image, max_tiles=max_tiles, size=56)
    )


def test_grey_tiles_equal_those_of_the_same_picture_in_rgb() -> None:
    grey = noise(700, 500).convert("L")
    assert np.array_equal(cut_tiles(grey, max_tiles=12), card.tiles(grey.convert("RGB"), max_tiles=12))


@pytest.mark.parametrize("spot", [None, (0, 0), (699, 499), (333, 250)])
def test_a_grey_picture_in_three_channels_is_tiled_alike_with_a_spot_of_colour_and_without(
    spot: tuple[int, int] | None,
) -> None:
    image = noise(700, 500).convert("L").convert("RGB")
    if spot:
        image.putpixel(spot, (0, 0, 1))
    assert np.array_equal(cut_tiles(image, max_tiles=12), card.tiles(image, max_tiles=12))


def test_forty_tiles_and_the_thumbnail_come_row_by_row() -> None:
    image = Image.new("RGB", (8 * 448, 5 * 448))
    for number in range(40):
        image.paste((number, 0, 255 - number), (number % 8 * 448, number // 8 * 448, 4000, 4000))
    tiles = cut_tiles(image, max_tiles=40)
    assert tiles.shape == (41, 448, 448, 3)
    assert [int(tile[224, 224, 0]) for tile in tiles[:40]] == list(range(40))


def test_the_thumbnail_can_be_left_out() -> None:
    assert len(cut_tiles(noise(900, 448), max_tiles=2, thumbnail=False)) == 2
    assert len(cut_tiles(noise(400, 400), max_tiles=1)) == 1


# Modes


def test_transparency_lies_over_white() -> None:
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.putpixel((1, 1), (0, 0, 255, 255))
    image.putpixel((2, 2), (0, 0, 0, 128))
    for form in ("PNG", "WEBP"):
        opened = open_image(encoded(image, form, **({"lossless": True} if form == "WEBP" else {})), LIMITS)
        assert opened.getpixel((0, 0)) == (255, 255, 255)
        assert opened.getpixel((1, 1)) == (0, 0, 255)
        assert opened.getpixel((2, 2)) == (127, 127, 127)


def test_a_palette_is_looked_up_and_its_transparent_entry_is_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert list(open_image(encoded(image, "PNG"), LIMITS).get_flattened_data()) == [(10, 20, 30), (200, 100, 50)]
    see_through = open_image(encoded(image, "PNG", transparency=0), LIMITS)
    assert list(see_through.get_flattened_data()) == [(255, 255, 255), (200, 100, 50)]


def test_a_transparent_grey_is_white() -> None:
    image = Image.new("LA", (2, 1), (50, 255))
    image.putpixel((1, 0), (0, 0))
    assert list(open_image(encoded(image, "PNG"), LIMITS).get_flattened_data()) == [(50, 50, 50), (255, 255, 255)]


def test_cmyk_is_converted() -> None:
    opened = open_image(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100), LIMITS)
    red, green, blue = np.asarray(opened).reshape(-1, 3).mean(0)
    assert red > 240
    assert green < 15
    assert blue < 15


def test_sixteen_bits_keep_their_upper_eight() -> None:
    values = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    for form in ("PNG", "TIFF"):
        opened = open_image(encoded(Image.fromarray(values), form), LIMITS)
        assert np.asarray(opened)[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_floats_are_scaled_where_they_are_fractions() -> None:
    fractions = Image.fromarray(np.array([[0.0, 0.5, 1.0, np.nan]], np.float32))
    assert np.asarray(open_image(encoded(fractions, "TIFF"), LIMITS))[0, :, 0].tolist() == [0, 128, 255, 0]
    levels = Image.fromarray(np.array([[0.0, 128.0, 300.0, -5.0]], np.float32))
    assert np.asarray(open_image(encoded(levels, "TIFF"), LIMITS))[0, :, 0].tolist() == [0, 128, 255, 0]


def test_black_and_white_and_grey_become_rgb_or_stay_grey() -> None:
    for mode in ("1", "L"):
        data = encoded(Image.new(mode, (3, 3), 255), "PNG")
        assert open_image(data, LIMITS).mode == "RGB"
        grey = open_image(data, LIMITS, keep_grey=True)
        assert grey.mode == "L"
        assert grey.getpixel((0, 0)) == 255


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied_once(form: str, orientation: int) -> None:
    upright = Image.new("RGB", (64, 32), "white")
    upright.paste("black", (0, 0, 32, 16))  # a black corner, upper left
    turn_back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(turn_back[orientation]) if orientation in turn_back else upright
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"lossless": True} if form == "WEBP" else {"quality": 100} if form == "JPEG" else {}
    opened = open_image(encoded(stored, form, exif=exif, **options), LIMITS)
    assert opened.size == (64, 32)
    difference = np.abs(np.asarray(opened).astype(int) - np.asarray(upright).astype(int))
    assert difference.mean() < 3


def test_damaged_exif_is_ignored() -> None:
    data = encoded(Image.new("RGB", (8, 8), "red"), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff rubbish")
    assert open_image(data, LIMITS).size == (8, 8)


def test_an_animation_shows_its_first_frame() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    for form in ("GIF", "WEBP"):
        data = encoded(frames[0], form, save_all=True, append_images=frames[1:])
        red, green, blue = np.asarray(open_image(data, LIMITS)).reshape(-1, 3).mean(0)
        assert red > 200
        assert green < 50
        assert blue < 50


# Hostile bytes


def png_of_size(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(8001, 8001), (30_000, 30_000), (2_000_000_000, 1), (100_000, 100_000)])
def test_a_bomb_is_refused_before_it_is_decoded(size: tuple[int, int]) -> None:
    with pytest.raises(MediaTooLarge):
        open_image(png_of_size(*size), LIMITS)


def test_too_many_bytes_are_refused() -> None:
    with pytest.raises(MediaTooLarge):
        open_image(b"x" * 101, MediaLimits(image_bytes=100))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_truncated_picture_is_corrupt(form: str, part: float) -> None:
    data = encoded(noise(200, 200), form)
    with pytest.raises((CorruptMedia, UnsupportedMedia)):
        open_image(data[: int(len(data) * part)], LIMITS)


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a", b"hello world", b"\xff\xd8\xff", b"<svg/>", b"BM" + b"\0" * 100], ids=repr
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises((UnsupportedMedia, CorruptMedia)):
        open_image(data, LIMITS)


def test_a_format_that_is_not_listed_is_refused() -> None:
    with pytest.raises(UnsupportedMedia):
        open_image(encoded(Image.new("RGB", (4, 4)), "BMP"), LIMITS)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_flipped_bytes_never_escape_the_tree(data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "TIFF"]))
    raw = bytearray(encoded(noise(40, 30), form))
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = open_image(bytes(raw), MediaLimits(pixels=1_000_000))
    except (CorruptMedia, UnsupportedMedia, MediaTooLarge):
        return
    assert image.mode == "RGB"


def test_a_picture_of_pictures_opens_as_the_main_one() -> None:
    out = io.BytesIO()
    main, other = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (16, 16), "blue")
    main.save(out, "MPO", save_all=True, append_images=[other])
    opened = open_image(out.getvalue(), LIMITS)
    assert opened.size == (32, 32)
