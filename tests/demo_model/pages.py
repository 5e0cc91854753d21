"""Random text pages: which words, which face, how large, how worn; harder as `difficulty` goes from 0 to 1."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import random
from pathlib import Path

from deploy.demo.documents import MONO, SANS, TILE, Colour, Page, Style, draw_lines, random_wear, width, worn

_SYSTEM = Path("/usr/share/fonts/truetype")
# In the order in which they join the training as difficulty rises. The FreeFont family is never trained on.
FACES = (
    SANS,
    MONO,
    _SYSTEM / "liberation/LiberationSans-Regular.ttf",
    _SYSTEM / "liberation/LiberationMono-Regular.ttf",
    _SYSTEM / "dejavu/DejaVuSans-Bold.ttf",
    _SYSTEM / "liberation/LiberationSans-Bold.ttf",
    _SYSTEM / "open-sans/OpenSans-Regular.ttf",
    _SYSTEM / "dejavu/DejaVuSerif.ttf",
    _SYSTEM / "liberation/LiberationSerif-Regular.ttf",
    _SYSTEM / "noto/NotoSans-Regular.ttf",
)
UNSEEN_FACES = (
    _SYSTEM / "freefont/FreeSans.ttf",
    _SYSTEM / "freefont/FreeMono.ttf",
    _SYSTEM / "freefont/FreeSerif.ttf",
)
LABELS = (
    "Total:",
    "Date:",
    "Name:",
    "No.",
    "Tel:",
    "Item",
    "Qty:",
    "Price:",
    "Invoice",
    "Page",
    "Ref:",
    "Amount:",
    "Room",
    "VAT",
    "Order",
    "Sum:",
    "From:",
    "To:",
    "Subject:",
)
_ALNUM = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
_MARKS = ".,:;!?-+*/=#%&$@()[]<>\"'_"


@functools.cache
def common_words() -> tuple[str, ...]:
    """Return the most used words of English, which only training draws from."""
    return tuple((Path(__file__).parent / "common_words.txt").read_text(encoding="ascii").split())


@functools.cache
def words(*, held_out: bool) -> tuple[str, ...]:
    """Return the word list's training part, or the tenth of it that training never sees."""
    listed = (Path(__file__).parent / "words.txt").read_text(encoding="ascii").split()
    return tuple(w for w in listed if (hashlib.md5(w.encode()).digest()[0] % 10 == 0) == held_out)


def _plain_word(draw: random.Random, *, held_out: bool) -> str:
    common = not held_out and draw.random() < 0.3
    text = draw.choice(common_words() if common else words(held_out=held_out))
    shape = draw.random()
    if shape < 0.06:
        text = text.upper()
    elif shape < 0.2:
        text = text.capitalize()
    if draw.random() < 0.12:
        text += draw.choice(".,,.:;!?")
    return text


def _number(draw: random.Random) -> str:
    kind = draw.randrange(7)
    if kind == 0:
        return f"{draw.randint(0, 999)}.{draw.randint(0, 99):02d}"
    if kind == 1:
        return f"{draw.randint(1950, 2049)}-{draw.randint(1, 12):02d}-{draw.randint(1, 28):02d}"
    if kind == 2:
        return f"${draw.randint(1, 9999)}"
    if kind == 3:
        return f"#{draw.randint(1, 999)}"
    if kind == 4:
        return f"{draw.randint(0, 23):02d}:{draw.randint(0, 59):02d}"
    if kind == 5:
        return f"{draw.randint(1, 99)}%"
    return str(draw.randint(0, 10 ** draw.randint(1, 7)))


def random_token(draw: random.Random, *, held_out: bool, plain: float) -> str:
    """Return one word, number, label or run of random characters; the share of words is `plain`."""
    kind = draw.random()
    if kind < plain:
        return _plain_word(draw, held_out=held_out)
    rest = (kind - plain) / (1 - plain)
    if rest < 0.45:
        return _number(draw)
    if rest < 0.55:
        return draw.choice(LABELS)
    if rest < 0.85:
        return "".join(draw.choice(_ALNUM) for _ in range(draw.randint(2, 8)))
    return "".join(draw.choice(_ALNUM + _MARKS) for _ in range(draw.randint(2, 6)))


def _colours(draw: random.Random, difficulty: float) -> tuple[Colour, Colour]:
    kind = draw.random() * max(difficulty, 0.05)
    grey = draw.randint(235, 255)
    if kind < 0.6:
        dark = draw.randint(0, 40)
        return (dark, dark, dark), (grey, grey, grey)
    if kind < 0.85:
        ink = (draw.randint(0, 110), draw.randint(0, 110), draw.randint(0, 110))
        return ink, (draw.randint(205, 255), draw.randint(205, 255), draw.randint(205, 255))
    light = draw.randint(200, 255)
    return (light, light, light), (draw.randint(0, 60), draw.randint(0, 60), draw.randint(0, 60))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PageKind:
    """What to draw: the grid of tiles, how many lines (None: as many as fit) and the most characters."""

    columns: int = 1
    rows: int = 1
    lines: int | None = None
    most: int = 400
    plain: float = 0.55
    held_out: bool = False
    face: Path | None = None
    sizes: tuple[int, int] | None = None
    wear: float = 0.6  # share of worn pages at difficulty 1


def _style(draw: random.Random, kind: PageKind, difficulty: float) -> Style:
    known = FACES[: max(2, round(len(FACES) * difficulty))]
    # The first faces are the ones the demo shows: they keep half of the draws however many there are.
    face = kind.face or draw.choice(known[:4] if draw.random() < 0.5 else known)
    low = 28 + 18 * (1 - difficulty)
    size = round(low * (60 / low) ** (draw.random() ** (1 + difficulty)))
    if kind.sizes:
        size = draw.randint(*kind.sizes)
    ink, paper = _colours(draw, difficulty)
    return Style(
        face=face,
        size=size,
        line_height=int(size * draw.uniform(1.2, 1.7)),
        left=draw.randint(6, 40),
        ink=ink,
        paper=paper,
    )


def _line(draw: random.Random, kind: PageKind, style: Style, room: float, *, single: bool) -> str:
    line = ""
    while True:
        token = random_token(draw, held_out=kind.held_out, plain=kind.plain)
        longer = f"{line} {token}" if line else token
        if width(longer, style) > room:
            while not line and width(token, style) > room:
                token = token[:-1]
            return line or token
        line = longer
        if draw.random() < (0.3 if single else 0.05):
            return line


def random_page(draw: random.Random, kind: PageKind, *, difficulty: float) -> Page:
    """Draw a page of `kind`; at difficulty 0 large dark plain faces, at 1 all faces down to 28 pixels, worn."""
    style = _style(draw, kind, difficulty)
    wide, high = kind.columns * TILE, kind.rows * TILE
    fitting = max(1, (high - 20) // style.line_height)
    count = fitting if kind.lines is None else min(kind.lines, fitting)
    slack = max(0, high - 14 - count * style.line_height)
    top = 6 + (draw.randint(0, slack) if draw.random() < 0.6 else min(slack, draw.randint(0, 30)))
    lines: list[str] = []
    total = 0
    for _ in range(count):
        room = (wide - style.left - 8) * (draw.uniform(0.4, 1) if draw.random() < 0.2 else 1)
        line = _line(draw, kind, style, room, single=count == 1)
        if lines and total + len(line) > kind.most:
            break
        lines.append(line[: kind.most].rstrip())
        total += len(line) + 1
    if count == 1:
        style = dataclasses.replace(style, left=draw.randint(6, max(6, int(wide - 14 - width(lines[0], style)))))
    page = draw_lines(lines, columns=kind.columns, rows=kind.rows, style=dataclasses.replace(style, top=top))
    if draw.random() < kind.wear * difficulty:
        page = worn(page, random_wear(draw), paper=style.paper)
    return page
