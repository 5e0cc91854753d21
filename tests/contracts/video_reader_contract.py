"""What every video reader does. Test modules subclass `VideoReaderContract` and give fixtures `make` and `clips`."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipelines.jobs.errors import BadFrameRange, CorruptMedia
from pipelines.media.frames import VideoReader
from tests.unit.media.samples import number_of

Make = Callable[[Path], VideoReader]
CLIPS = ["h264.mp4", "h264-long-gop.mkv", "h264-intra.mov", "vp9.webm", "mpeg4.avi"]
FRAMES = 90


class VideoReaderContract:
    @pytest.mark.parametrize("name", CLIPS)
    def test_it_counts_frames_and_knows_rate_and_size(self, make: Make, clips: Path, name: str) -> None:
        with make(clips / name) as video:
            assert (video.frames, video.width, video.height) == (FRAMES, 160, 128)
            assert video.fps == pytest.approx(25, rel=0.01)

    @pytest.mark.parametrize("name", CLIPS)
    @pytest.mark.parametrize(
        "indices",
        [
            [0],
            [FRAMES - 1],
            list(range(FRAMES)),
            [1, 14, 42, 43, 44, 70, 89],
            [60, 3, 59, 61, 0, 89, 10],
            [5, 5, 5, 6, 6, 88, 88],
        ],
        ids=["first", "last", "all", "rising", "any order", "repeated"],
    )
    def test_each_index_is_that_frame(self, make: Make, clips: Path, name: str, indices: list[int]) -> None:
        with make(clips / name) as video:
            frames = list(video.read(indices))
        assert [number_of(frame) for frame in frames] == indices
        assert all(frame.shape == (128, 160, 3) and frame.dtype == np.uint8 for frame in frames)

    def test_reading_twice_gives_the_same_pixels(self, make: Make, clips: Path) -> None:
        with make(clips / "h264.mp4") as video:
            once = list(video.read([7, 30]))
            again = list(video.read([7, 30]))
        assert all(np.array_equal(a, b) for a, b in itertools.pairwise([once[1], again[1]]))
        assert np.array_equal(once[0], again[0])

    @pytest.mark.parametrize("index", [-1, FRAMES, 10**9])
    def test_an_index_outside_is_refused(self, make: Make, clips: Path, index: int) -> None:
        with make(clips / "h264.mp4") as video, pytest.raises(BadFrameRange):
            list(video.read([index]))

    def test_reading_is_lazy(self, make: Make, clips: Path) -> None:
        with make(clips / "h264.mp4") as video:
            frames = video.read([3, 10**9])
            assert number_of(next(frames)) == 3

    @pytest.mark.parametrize(
        "content", [b"", b"\0" * 5000, b"\0\0\0\x18ftypisom\0\0\2\0isomiso2"], ids=["empty", "zeros", "head"]
    )
    def test_what_is_no_video_is_corrupt(self, make: Make, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "x.mp4"
        path.write_bytes(content)
        with pytest.raises(CorruptMedia):
            make(path)

    def test_a_clip_without_its_index_is_corrupt(self, make: Make, clips: Path, tmp_path: Path) -> None:
        path = tmp_path / "cut.mp4"
        path.write_bytes((clips / "h264.mp4").read_bytes()[:-3000])  # the `moov` box stands last
        with pytest.raises(CorruptMedia):
            make(path)
