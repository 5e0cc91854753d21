"""Clips are encoded once for all tests of this folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.contracts.video_reader_contract import FRAMES
from tests.unit.media.samples import clip


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    clip(folder / "h264.mp4", FRAMES, options={"g": "12", "preset": "veryfast"}, width=160, height=128)
    clip(
        folder / "h264-long-gop.mkv",
        FRAMES,
        options={"g": "250", "bf": "3", "preset": "veryfast"},
        width=160,
        height=128,
    )
    clip(folder / "h264-intra.mov", FRAMES, options={"g": "1", "preset": "ultrafast"}, width=160, height=128)
    clip(
        folder / "vp9.webm",
        FRAMES,
        codec="libvpx-vp9",
        options={"deadline": "realtime", "cpu-used": "8"},
        width=160,
        height=128,
    )
    clip(folder / "mpeg4.avi", FRAMES, codec="mpeg4", options={"qscale": "3"}, width=160, height=128)
    # SVT-AV1 gives the process that encodes real-time priority where it may (as root). Everything that the tests start
    # would inherit it, and what spins then starves the machine: so the encoder has a process of its own.
    program = (
        "import sys; from pathlib import Path; from tests.unit.media.samples import clip; "
        "clip(Path(sys.argv[1]), 20, codec='libsvtav1', options={'preset': '12'}, width=160, height=128)"
    )
    subprocess.run([sys.executable, "-c", program, str(folder / "av1.mp4")], check=True, stderr=subprocess.DEVNULL)
    return folder
