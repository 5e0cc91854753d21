"""What the media benchmarks share: timing, samples, and a report as a table and as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

Row = Mapping[str, object]


def best(work: Callable[[], object], *, repeats: int) -> float:
    """Milliseconds of processor time (all threads) of the cheapest run.

    Not wall time: a worker has one core for each process, and on a shared machine wall time measures the neighbours.
    """
    work()
    times = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times) * 1000


def report(name: str, rows: Sequence[Row], path: Path | None) -> None:
    """Print a table; write JSON beside the machine's description."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [[_cell(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(len(text) for text in column) for column in zip(columns, *cells, strict=True)]
    print(f"\n{name}")
    for line in [columns, *cells]:
        print("  " + "  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)))
    if path is not None:
        machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
        path.write_text(json.dumps({"name": name, "machine": machine, "rows": list(rows)}, indent=2))


def _cell(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, default=None, help="write the figures here as well")
    parser.add_argument("--repeats", type=int, default=5)
    return parser


def scanned_page(width: int, height: int) -> Image.Image:
    """A printed page as a scanner sees it: text, a little colour, and the noise that makes JPEG work."""
    rng = np.random.default_rng(0)
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    for number, y in enumerate(range(height // 20, height * 19 // 20, height // 60)):
        ink = (20, 30, 90) if number % 9 == 0 else (15, 15, 15)
        draw.text((width // 12, y), "The quick brown fox jumps over the lazy dog. " * 3, ink, font_size=height // 85)
    noisy = np.asarray(page).astype(np.int16) + rng.normal(0, 5, (height, width, 1)).astype(np.int16)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def photo(width: int, height: int) -> Image.Image:
    """Smooth shapes and fine grain."""
    rng = np.random.default_rng(1)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((width, height))
    grain = np.asarray(coarse).astype(np.int16) + rng.normal(0, 8, (height, width, 3)).astype(np.int16)
    return Image.fromarray(grain.clip(0, 255).astype(np.uint8))
