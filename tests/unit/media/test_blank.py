"""What counts as blank: dirt does, the shortest word does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter, ImageFont

import deploy.demo
from pipelines.media.blank import is_blank

A4 = (1190, 1684)  # at 144 dpi
MILLIMETRE = A4[1] / 297
FONTS = Path(deploy.demo.__path__[0]) / "fonts"
EIGHT_POINTS = 16  # pixels at 144 dpi

paper = st.integers(200, 255)
seeds = st.integers(0, 2**32 - 1)


def sheet(shade: int = 255, size: tuple[int, int] = A4) -> Image.Image:
    return Image.new("L", size, shade)


def noisy(page: Image.Image, deviation: float, seed: int) -> Image.Image:
    draw = np.random.default_rng(seed)
    pixels = np.asarray(page).astype(np.float32)
    return Image.fromarray((pixels + draw.normal(0, deviation, pixels.shape)).clip(0, 255).astype(np.uint8))


def written(page: Image.Image, text: str, at: tuple[float, float], *, ink: int = 0, size: int = EIGHT_POINTS) -> None:
    face = ImageFont.truetype(str(FONTS / "DejaVuSans.ttf"), size)
    ImageDraw.Draw(page).text(at, text, font=face, fill=ink)


def disc(page: Image.Image, x: float, y: float, radius: float, shade: int) -> None:
    ImageDraw.Draw(page).ellipse((x - radius, y - radius, x + radius, y + radius), fill=shade)


@settings(max_examples=30, deadline=None)
@given(
    word=st.sampled_from(["of", "it", "is", "no", "to", "an", "I", "7", "12", "ill", "Re", "the", "fin"]),
    x=st.floats(15, 1140),
    y=st.floats(15, 1650),
    shade=paper,
    ink=st.integers(0, 80),
    noise=st.sampled_from([0.0, 2.0, 4.0]),
    seed=seeds,
)
def test_one_short_word_of_8_points_is_never_blank(
    word: str, x: float, y: float, shade: int, ink: int, noise: float, seed: int
) -> None:
    page = sheet(shade)
    written(page, word, (x, y), ink=ink)
    assert not is_blank(noisy(page, noise, seed) if noise else page)


@settings(max_examples=8, deadline=None)
@given(shade=st.integers(0, 255), deviation=st.floats(0, 12), seed=seeds)
def test_the_noise_of_a_scanner_is_blank(shade: int, deviation: float, seed: int) -> None:
    assert is_blank(noisy(sheet(shade), deviation, seed))


@settings(max_examples=8, deadline=None)
@given(
    corners=st.tuples(*[st.integers(190, 255)] * 4),
    seed=seeds,
)
def test_slight_shading_is_blank(corners: tuple[int, int, int, int], seed: int) -> None:
    shading = Image.fromarray(np.array(corners, np.uint8).reshape(2, 2)).resize(A4, Image.Resampling.BILINEAR)
    assert is_blank(noisy(shading, 3, seed))


@settings(max_examples=8, deadline=None)
@given(shade=paper, share=st.floats(0, 0.002), seed=seeds)
def test_salt_and_pepper_is_blank(shade: int, share: float, seed: int) -> None:
    draw = np.random.default_rng(seed)
    pixels = np.full(A4[::-1], shade, np.uint8)
    hits = draw.random(pixels.shape)
    pixels[hits < share / 2] = 0
    pixels[hits > 1 - share / 2] = 255
    assert is_blank(Image.fromarray(pixels))


@settings(max_examples=8, deadline=None)
@given(
    # Apart from each other, as dust lies: two grains that touch are as large as a letter.
    places=st.sets(st.tuples(st.integers(1, 48), st.integers(1, 68)), max_size=40),
    radius=st.floats(0.5, 3),
    shade=st.integers(0, 120),
    seed=seeds,
)
def test_specks_of_a_millimetre_are_blank(places: set[tuple[int, int]], radius: float, shade: int, seed: int) -> None:
    page = sheet(250)
    for column, row in places:
        disc(page, column * 24, row * 24, radius, shade)
    assert is_blank(noisy(page, 3, seed))


@settings(max_examples=8, deadline=None)
@given(
    holes=st.sampled_from([2, 3, 4]),
    shade=st.integers(0, 180),
    radius=st.floats(2.6, 3.4),
    side=st.sampled_from(["left", "right", "top"]),
    blur=st.floats(0, 1.5),
    seed=seeds,
)
def test_punch_holes_alone_are_blank(holes: int, shade: int, radius: float, side: str, blur: float, seed: int) -> None:
    page = sheet(250)
    for number in range(holes):
        along = (number - (holes - 1) / 2) * 60 * MILLIMETRE
        x, y = {
            "left": (12 * MILLIMETRE, A4[1] / 2 + along),
            "right": (A4[0] - 12 * MILLIMETRE, A4[1] / 2 + along),
            "top": (A4[0] / 2 + along * 0.8, 12 * MILLIMETRE),
        }[side]
        disc(page, x, y, radius * MILLIMETRE, shade)
    assert is_blank(noisy(page.filter(ImageFilter.GaussianBlur(blur)), 3, seed))


@settings(max_examples=8, deadline=None)
@given(
    widths=st.tuples(*[st.integers(0, 80)] * 4),
    shade=st.integers(0, 150),
    blur=st.floats(0, 4),
    seed=seeds,
)
def test_dark_borders_alone_are_blank(widths: tuple[int, int, int, int], shade: int, blur: float, seed: int) -> None:
    left, top, right, bottom = widths
    page = sheet(shade)
    page.paste(250, (left, top, A4[0] - right, A4[1] - bottom))
    assert is_blank(noisy(page.filter(ImageFilter.GaussianBlur(blur)), 3, seed))


@pytest.mark.parametrize("degrees", [-1.5, -0.5, 0.3, 1.0])
def test_a_skewed_sheet_under_a_dark_lid_is_blank(degrees: float) -> None:
    bed = sheet(15, (1300, 1800))
    bed.paste(250, (75, 80, 1225, 1720))
    scan = bed.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=15).crop((55, 58, 1245, 1742))
    assert is_blank(noisy(scan, 3, 1))


def _gutter(page: Image.Image) -> Image.Image:
    pixels = np.asarray(page).astype(np.float32)
    pixels[:, :160] -= np.linspace(180, 0, 160)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _streak(page: Image.Image) -> Image.Image:
    ImageDraw.Draw(page).line((600, 0, 600, 1684), fill=100, width=2)
    return page


def _ruled(page: Image.Image) -> Image.Image:
    for y in range(200, 1600, 120):
        ImageDraw.Draw(page).line((80, y, 1100, y), fill=120, width=1)
    return page


@pytest.mark.parametrize("dirt", [_gutter, _streak, _ruled])
def test_shadows_streaks_and_ruled_lines_are_blank(dirt: Callable[[Image.Image], Image.Image]) -> None:
    assert is_blank(noisy(dirt(sheet(250)), 2, 3))


@pytest.mark.parametrize("dirt", [_gutter, _streak, _ruled])
def test_a_word_among_dirt_is_seen(dirt: Callable[[Image.Image], Image.Image]) -> None:
    page = dirt(sheet(250))
    written(page, "Seite", (500, 700))
    assert not is_blank(noisy(page, 2, 3))


def test_a_word_inside_a_dark_band_is_seen() -> None:
    page = sheet(250)
    page.paste(20, (0, 0, A4[0], 60))
    assert is_blank(page)
    written(page, "ACME letterhead", (300, 18), ink=250, size=22)
    assert not is_blank(page)


@pytest.mark.parametrize(
    ("ground", "ink"), [("white", "yellow"), ("black", "red"), ("black", "white"), ("navy", "red")]
)
def test_coloured_ink_is_seen(ground: str, ink: str) -> None:
    page = Image.new("RGB", A4, ground)
    assert is_blank(page)
    face = ImageFont.truetype(str(FONTS / "DejaVuSans.ttf"), EIGHT_POINTS)
    ImageDraw.Draw(page).text((300, 300), "hello", font=face, fill=ink)
    assert not is_blank(page)


@pytest.mark.parametrize("dpi", [100, 144, 200, 300, 600])
def test_resolution_does_not_matter(dpi: int) -> None:
    size = (round(8.27 * dpi), round(11.69 * dpi))
    page = sheet(250, size)
    assert is_blank(page)
    written(page, "page 3", (size[0] / 2, size[1] * 0.9), size=round(10 * dpi / 72))
    assert not is_blank(page)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (20, 20), (300, 40), (448, 448), (3000, 30)])
def test_pictures_of_any_size_are_measured(size: tuple[int, int]) -> None:
    page = sheet(255, size)
    assert is_blank(page)
    if min(size) >= 20:
        written(page, "word", (3, 3), size=14)
        assert not is_blank(page)


def test_a_photograph_is_not_blank() -> None:
    draw = np.random.default_rng(4)
    coarse = draw.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    assert not is_blank(Image.fromarray(coarse).resize((1600, 1200), Image.Resampling.BICUBIC))
