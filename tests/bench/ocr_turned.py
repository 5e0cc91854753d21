"""How well the model's own confidence tells pages that lie on their side or head, on the bundled demo checkpoint.

Held-out pages are read upright and turned by 90, 180 and 270 degrees. Printed: the mean log-probability of the answers
by turn, and for several thresholds how many upright pages would be doubted and how many turned ones missed.
Run as `python -m tests.bench.ocr_turned [pages]`.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
from concurrent.futures import Future
from pathlib import Path

from PIL import Image

import deploy.demo
from pipelines.engine.load import load_engine
from pipelines.engine.options import EngineOptions
from pipelines.engine.types import Completion, EngineRequest, GenerationParams, Tiles
from pipelines.kinds.base import MediaClass, MediumView
from pipelines.kinds.ocr import KIND
from pipelines.media.images import cut_tiles
from pipelines.media.pack import tile_digests
from tests.demo_model.evaluate import edits
from tests.demo_model.pages import FACES, PageKind, random_page

TURNS = (0, 90, 180, 270)
KINDS = {
    "page of one tile, DejaVu Sans": PageKind(most=240, plain=0.75, face=FACES[0], sizes=(32, 48), held_out=True),
    "page of one tile, all faces": PageKind(most=240, plain=0.75, sizes=(32, 48), held_out=True),
    "page of 2 x 2 tiles, DejaVu Sans": PageKind(
        columns=2, rows=2, most=360, plain=0.75, face=FACES[0], sizes=(34, 48), held_out=True
    ),
}


def tiles_of(image: Image.Image) -> Tiles:
    pixels = cut_tiles(image, max_tiles=12)
    return Tiles(pixels=pixels, counts=(len(pixels),), digests=tile_digests(pixels, (len(pixels),)))


def main(count: int) -> None:
    engine = load_engine(Path(deploy.demo.__path__[0]) / "checkpoint", EngineOptions(device="cpu", threads=1))
    view = MediumView(media_class=MediaClass.IMAGE)
    question = KIND.dialogue(KIND.parse_parameters({}), (view,)).questions[0]
    found: dict[int, list[tuple[float, bool]]] = {turn: [] for turn in TURNS}
    best = 0
    for name, kind in KINDS.items():
        draw = random.Random(f"turned {name}")
        asked: list[tuple[str, int, Future[Completion]]] = []
        for _ in range(count):
            page = random_page(draw, kind, difficulty=0.0)
            for turn in TURNS:
                image = page.image.rotate(-turn, expand=True)
                request = EngineRequest(
                    request_id="r",
                    question=question,
                    media=tiles_of(image),
                    params=GenerationParams(max_new_tokens=300),
                )
                asked.append((page.text, turn, engine.submit(request).future))
        rows = [(text, turn, future.result()) for text, turn, future in asked]
        upright = [(text, answer) for text, turn, answer in rows if turn == 0]
        wrong = sum(edits(text, answer.text) for text, answer in upright) / sum(len(text) for text, _ in upright)
        print(f"{name}: CER upright {wrong:.1%}")
        for turn in TURNS:
            values = [(answer.mean_logprob or 0.0, answer.degenerate) for _, at, answer in rows if at == turn]
            found[turn] += values
            numbers = sorted(value for value, _ in values)
            middle = statistics.median(numbers)
            print(
                f"  turned {turn:3d}: min {numbers[0]:.2f} median {middle:.2f} max {numbers[-1]:.2f}"
                f" degenerate {sum(bad for _, bad in values)}"
            )
        for start in range(0, len(rows), len(TURNS)):
            group = rows[start : start + len(TURNS)]
            best += max(group, key=lambda row: row[2].mean_logprob or -99.0)[1] == 0
    engine.close()
    total = len(found[0])
    print(f"upright is the likeliest of the four: {best} of {total}")
    for threshold in (-0.1, -0.2, -0.3, -0.4, -0.5, -0.6, -0.7, -0.8, -1.0, -1.2, -1.5):
        doubted = sum(value < threshold or bad for value, bad in found[0])
        missed = sum(value >= threshold and not bad for turn in TURNS[1:] for value, bad in found[turn])
        print(f"  {threshold:5.1f}: upright doubted {doubted}/{total}, turned missed {missed}/{3 * total}")
    print(json.dumps({turn: [round(value, 3) for value, _ in found[turn]] for turn in TURNS}))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
