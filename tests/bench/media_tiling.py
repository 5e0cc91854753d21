"""Tiling against the model card's way of loading, and against decoding alone.

`python -m tests.bench.media_tiling [--json PATH]`. The card's way: resize, then for each tile crop, convert, to float,
normalise; stacked at the end. Ours: the same pixels as uint8 tiles, for normalisation happens on the device.
"""

from __future__ import annotations

import io
from functools import partial

import numpy as np
import torch
from PIL import Image

from pipelines.media.images import cut_tiles, open_image, target_grid
from pipelines.media.limits import MediaLimits
from tests.bench.media_report import Row, arguments, best, photo, report, scanned_page

MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
LIMITS = MediaLimits()


def card(data: bytes, max_tiles: int) -> torch.Tensor:
    """`load_image` of the card, written again."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    cols, rows = target_grid(*image.size, max_tiles=max_tiles)
    resized = image.resize((cols * 448, rows * 448))
    tiles = [
        resized.crop((n % cols * 448, n // cols * 448, (n % cols + 1) * 448, (n // cols + 1) * 448))
        for n in range(cols * rows)
    ]
    if len(tiles) != 1:
        tiles.append(image.resize((448, 448)))
    return torch.stack([_tensor(tile) for tile in tiles])


def _tensor(tile: Image.Image) -> torch.Tensor:
    # ToTensor and Normalize of torchvision, which is not among our packages.
    values = torch.from_numpy(np.array(tile, np.uint8)).permute(2, 0, 1).contiguous()
    return values.to(torch.float32).div(255).sub_(MEAN).div_(STD)


def ours(data: bytes, max_tiles: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """What a decoder child does."""
    return cut_tiles(open_image(data, LIMITS, keep_grey=True), max_tiles=max_tiles)


def decode(data: bytes) -> None:
    """The floor: pixels in memory, nothing else."""
    Image.open(io.BytesIO(data)).load()


def main() -> None:
    """Run, print, write."""
    parser = arguments("tiling")
    parser.add_argument("--max-tiles", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(1)
    samples = {
        "A4 200 dpi colour JPEG": (scanned_page(1654, 2339), "JPEG"),
        "A4 200 dpi grey JPEG": (scanned_page(1654, 2339).convert("L"), "JPEG"),
        "A4 150 dpi grey as RGB PNG": (scanned_page(1240, 1754).convert("L").convert("RGB"), "PNG"),
        "A4 300 dpi colour JPEG": (scanned_page(2480, 3508), "JPEG"),
        "A4 300 dpi colour PNG": (scanned_page(2480, 3508), "PNG"),
        "A4 200 dpi 1 bit PNG": (scanned_page(1654, 2339).convert("1"), "PNG"),
        "photo 12 MP JPEG": (photo(4000, 3000), "JPEG"),
        "photo 12 MP WebP": (photo(4000, 3000), "WEBP"),
        "screenshot 1280x960 PNG": (photo(1280, 960), "PNG"),
    }
    rows: list[Row] = []
    for name, (image, form) in samples.items():
        out = io.BytesIO()
        image.save(out, form, **({"quality": 88} if form != "PNG" else {}))
        data = out.getvalue()
        floor = best(partial(decode, data), repeats=options.repeats)
        cards = best(partial(card, data, options.max_tiles), repeats=options.repeats)
        mine = best(partial(ours, data, options.max_tiles), repeats=options.repeats)
        rows.append(
            {
                "sample": name,
                "MB": len(data) / 1e6,
                "tiles": len(ours(data, options.max_tiles)),
                "decode ms": floor,
                "card ms": cards,
                "ours ms": mine,
                "ours MB/s": len(data) / 1e3 / mine,
                "card / ours": cards / mine,
                "ours / decode": mine / floor,
            }
        )
    report(f"Tiling, up to {options.max_tiles} tiles and a thumbnail", rows, options.json)


if __name__ == "__main__":
    main()
