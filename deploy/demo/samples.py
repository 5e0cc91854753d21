"""The sample files that `make demo` submits, each with the text that a right answer gives.

Pages are whole multiples of a tile, so that the tiling rule cuts them as drawn: most are one tile, a few two, four or
six with a thumbnail. The words are fixed, their choice, setting and wear follow from the seed.
"""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

from PIL import Image

from deploy.demo.clips import random_clip, write_mp4
from deploy.demo.documents import MONO, SANS, Page, Style, Wear, draw_lines, width, worn
from deploy.demo.scenes import draw_things, random_scene

# The kinds draw PDF pages at 144 dots an inch unless told otherwise.
DPI = 144
CLIP_FRAMES = 8
_PAPER = (255, 255, 255)

PROSE = (
    "The harbour was",
    "quiet before dawn.",
    "Nine boats came in",
    "with the tide, and",
    "their lamps went",
    "out one by one.",
    "Please send two",
    "copies of the map",
    "to our office.",
    "A warm wind blew",
    "over the old town.",
    "We met at the gate",
    "and walked home.",
    "Bread, milk, eggs",
    "and a jar of honey",
    "The train leaves",
    "from platform four",
    "Keep this side up.",
    "Thank you for your",
    "letter of last week",
    "The garden needs",
    "water every day.",
    "Rain is expected",
    "until the evening.",
    "Turn left at the",
    "stone bridge.",
    "Do not bend.",
    "Handle with care!",
    "Who has the key?",
    "Yours sincerely,",
)
_ITEMS = ("Paper", "Pencils", "Lamp", "Chairs", "Cable", "Tape", "Boxes", "Paint", "Soap", "Tea")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One file to submit.

    `expected` has one text a page, image or question, in order. `error` is the stable code with which the file must
    fail instead; None where it must succeed.
    """

    path: Path
    kind: str
    parameters: dict[str, object]
    expected: tuple[str, ...]
    error: str | None = None


def _prose(draw: random.Random, count: int) -> list[str]:
    start = draw.randrange(len(PROSE))
    return [PROSE[(start + number) % len(PROSE)] for number in range(count)]


def _ledger(draw: random.Random, count: int) -> list[str]:
    items = draw.sample(_ITEMS, count - 3)
    prices = [draw.randint(100, 9999) for _ in items]
    lines = [f"Invoice {draw.randint(1000, 9999)}", f"Date: {draw.randint(2019, 2026)}-0{draw.randint(1, 9)}-17"]
    lines += [f"{item} {price / 100:.2f}" for item, price in zip(items, prices, strict=True)]
    return [*lines, f"Total: {sum(prices) / 100:.2f}"]


def _style(draw: random.Random, face: Path, lines: list[str], *, columns: int = 1, most: int = 44) -> Style:
    """Choose the largest size up to `most` pixels at which the longest line fits, and a margin."""
    size = draw.randint(38, most)
    while True:
        style = Style(
            face=face,
            size=size,
            line_height=round(1.4 * size),
            left=draw.randint(12, 20),
            top=draw.randint(10, 24),
        )
        if max(width(line, style) for line in lines) + style.left + 8 <= 448 * columns:
            return style
        size -= 1


def _page(draw: random.Random, lines: list[str], *, face: Path = SANS, columns: int = 1, rows: int = 1) -> Page:
    style = _style(draw, face, lines, columns=columns)
    ground = dataclasses.replace(style, paper=_PAPER)
    return draw_lines(lines, columns=columns, rows=rows, style=ground)


def _scanned(draw: random.Random, page: Page) -> Page:
    wear = Wear(
        skew=draw.uniform(-1.5, 1.5), blur=draw.uniform(0.2, 0.6), noise=draw.uniform(2, 6), seed=draw.getrandbits(32)
    )
    return worn(page, wear, paper=_PAPER)


def _documents(folder: Path, draw: random.Random) -> list[Sample]:
    letters = [_page(draw, _prose(draw, 6)) for _ in range(8)]
    first, *others = (page.image for page in letters)
    first.save(folder / "letters.pdf", save_all=True, append_images=others, resolution=DPI, quality=92)
    ledgers = [_page(draw, _ledger(draw, 6), face=MONO) for _ in range(6)]
    first, *others = (page.image for page in ledgers)
    first.save(folder / "ledgers.tiff", save_all=True, append_images=others, compression="tiff_deflate")
    return [
        Sample(path=folder / name, kind="ocr", parameters={}, expected=tuple(page.text for page in pages))
        for name, pages in (("letters.pdf", letters), ("ledgers.tiff", ledgers))
    ]


def _scans(folder: Path, draw: random.Random) -> list[Sample]:
    samples = []
    for number, suffix in enumerate(("png", "jpg", "webp", "png", "jpg", "webp"), 1):
        lines = _prose(draw, 6) if number % 2 else _ledger(draw, 6)
        page = _scanned(draw, _page(draw, lines))
        path = folder / f"scan-{number}.{suffix}"
        page.image.save(path, quality=85)
        samples.append(Sample(path=path, kind="ocr", parameters={}, expected=(page.text,)))
    sheets = (("wide", 2, 1, 6, 2), ("tall", 1, 2, 12, 1), ("sheet", 2, 2, 9, 2), ("poster", 2, 3, 20, 1))
    for name, columns, rows, count, phrases in sheets:
        prose = _prose(draw, count * phrases)
        lines = [" ".join(prose[at : at + phrases]) for at in range(0, len(prose), phrases)]
        page = _page(draw, lines, columns=columns, rows=rows)
        path = folder / f"{name}.png"
        page.image.save(path)
        samples.append(Sample(path=path, kind="ocr", parameters={}, expected=(page.text,)))
    return samples


def _photos(folder: Path, draw: random.Random) -> list[Sample]:
    samples = []
    for number in range(1, 11):
        scene = random_scene(draw)
        path = folder / f"photo-{number:02d}.{'jpg' if number % 2 else 'png'}"
        draw_things(scene.things, scene.ground).save(path, quality=92)
        samples.append(Sample(path=path, kind="caption", parameters={}, expected=(scene.caption,)))
    return samples


def _clips(folder: Path, draw: random.Random) -> list[Sample]:
    samples = []
    for kind in ("way", "blink", "first"):
        clip = random_clip(draw, frames=CLIP_FRAMES, kind=kind)
        path = folder / f"clip-{kind}.mp4"
        write_mp4(clip, path)
        parameters: dict[str, object] = {"questions": [clip.question], "num_segments": CLIP_FRAMES}
        samples.append(Sample(path=path, kind="video_qa", parameters=parameters, expected=(clip.answer,)))
    return samples


def _broken(folder: Path) -> Sample:
    """A picture whose second half is missing."""
    path = folder / "broken.png"
    Image.effect_mandelbrot((448, 448), (-2, -1.5, 1, 1.5), 50).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return Sample(path=path, kind="ocr", parameters={}, expected=(), error="corrupt_media")


def write_samples(folder: Path, seed: int) -> tuple[Sample, ...]:
    """Write the sample set into `folder` (created if missing) and return what each file should give.

    The same seed writes the same pictures. With the pages of documents and each clip counted, there are 38 items that
    must succeed and one that must fail.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    makers = (_documents, _scans, _photos, _clips)
    samples = [sample for make in makers for sample in make(folder, draw)]
    return (*samples, _broken(folder))
