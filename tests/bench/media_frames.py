"""Sampling frames against the model card's way (decord, one at a time), and against decoding the whole clip.

`python -m tests.bench.media_frames [--json PATH]`. All but the last column give the same 32 tiles.
"""

from __future__ import annotations

import importlib
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image

from pipelines.media.frames import frame_indices, open_video
from pipelines.media.images import cut_tiles
from pipelines.media.limits import MediaLimits
from tests.bench.media_report import Row, arguments, best, photo, report

MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
decord: Any = importlib.import_module("decord")  # without types
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def make(path: Path, *, frames: int, width: int, height: int, codec: str, options: dict[str, str]) -> None:
    """A panning photo, 30 frames a second."""
    wide = np.asarray(photo(width * 2, height))
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(frames):
            left = index * 4 % width
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(wide[:, left : left + width]), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def card(path: Path, segments: int) -> torch.Tensor:
    """`load_video` of the card, written again."""
    video = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
    tensors = []
    for index in frame_indices(frames=len(video), fps=float(video.get_avg_fps()), num_segments=segments):
        image = Image.fromarray(video[index].asnumpy()).convert("RGB").resize((448, 448))
        values = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().to(torch.float32)
        tensors.append(values.div(255).sub_(MEAN).div_(STD))
    return torch.stack(tensors)


def ours(path: Path, segments: int, reader: str) -> int:
    """What a decoder child does, with one reader."""
    with open_video(path, MediaLimits(), readers=(reader,)) as video:
        indices = frame_indices(frames=video.frames, fps=video.fps, num_segments=segments)
        return sum(len(cut_tiles(Image.fromarray(frame), max_tiles=1)) for frame in video.read(indices))


def whole(path: Path) -> int:
    """Decode every frame, convert none."""
    with av.open(str(path)) as container:
        container.streams.video[0].thread_count = 1
        return sum(1 for _ in container.decode(video=0))


def main() -> None:
    """Run, print, write."""
    parser = arguments("frames")
    parser.add_argument("--segments", type=int, default=32)
    options = parser.parse_args()
    torch.set_num_threads(1)
    clips: dict[str, dict[str, Any]] = {
        "720p H.264, 20 s": {"frames": 600, "width": 1280, "height": 720, "codec": "libx264"},
        "720p H.264, 60 s": {"frames": 1800, "width": 1280, "height": 720, "codec": "libx264"},
        "1080p H.264, 20 s": {"frames": 600, "width": 1920, "height": 1080, "codec": "libx264"},
        "360p VP9, 20 s": {"frames": 600, "width": 640, "height": 360, "codec": "libvpx-vp9"},
    }
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, values) in enumerate(clips.items()):
            h264 = values["codec"] == "libx264"
            path = Path(folder) / f"{number}.{'mp4' if h264 else 'webm'}"
            fast = {"preset": "medium", "crf": "23"} if h264 else {"deadline": "realtime", "cpu-used": "8"}
            make(path, **values, options=fast)
            cards = best(partial(card, path, options.segments), repeats=options.repeats)
            first = best(partial(ours, path, options.segments, "decord"), repeats=options.repeats)
            second = best(partial(ours, path, options.segments, "pyav"), repeats=options.repeats)
            everything = best(partial(whole, path), repeats=max(1, options.repeats // 2))
            rows.append(
                {
                    "clip": name,
                    "MB": path.stat().st_size / 1e6,
                    "card ms": cards,
                    "decord ms": first,
                    "pyav ms": second,
                    "whole clip ms": everything,
                    "card / decord": cards / first,
                    "card / pyav": cards / second,
                }
            )
    report(f"{options.segments} frames of a clip", rows, options.json)


if __name__ == "__main__":
    main()
