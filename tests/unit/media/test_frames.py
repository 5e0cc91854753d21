"""Frame numbers by the card's rule, and both readers by one suite."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.jobs.errors import (
    BadFrameRange,
    CorruptMedia,
    EmptyDocument,
    InvalidParameter,
    MediaTooLarge,
    UnsupportedMedia,
)
from pipelines.media.frames import DecordReader, PyAVReader, check_video, frame_indices, open_video, segments_at
from pipelines.media.limits import MediaLimits
from tests.contracts.video_reader_contract import CLIPS, VideoReaderContract
from tests.unit.media import card
from tests.unit.media.samples import clip, number_of

LIMITS = MediaLimits()


@given(st.integers(1, 500_000), st.floats(0.5, 240), st.integers(1, 2048))
def test_indices_are_the_cards(frames: int, fps: float, num_segments: int) -> None:
    ours = frame_indices(frames=frames, fps=fps, num_segments=num_segments)
    assert list(ours) == card.indices(frames, fps, num_segments)


@given(st.integers(1, 100_000), st.floats(0.5, 240), st.floats(0.01, 1_000), st.integers(1, 2_048))
def test_a_rate_gives_as_many_frames_as_the_seconds_hold(frames: int, fps: float, rate: float, most: int) -> None:
    found = segments_at(rate, frames=frames, fps=fps, most=most)
    assert 1 <= found <= most
    if 1 < found < most:
        assert found == pytest.approx(frames / fps * rate, abs=1)
    assert segments_at(rate, frames=frames, fps=fps, bound=(0.0, frames / fps), most=most) == found


def test_a_rate_counts_the_seconds_of_the_bound() -> None:
    def at(rate: float, bound: tuple[float, float] | None = None) -> int:
        return segments_at(rate, frames=250, fps=25.0, bound=bound, most=100)

    assert at(2.0) == 20
    assert at(2.0, (4.0, 6.0)) == 4
    assert at(2.0, (9.0, 90.0)) == 2
    assert at(0.01) == 1


@given(st.integers(1, 100_000), st.floats(0.5, 240), st.integers(1, 64), st.floats(-10, 5000), st.floats(0.001, 5000))
def test_bounded_indices_are_the_cards_inside_of_the_clip(
    frames: int, fps: float, num_segments: int, start: float, length: float
) -> None:
    bound = (start, start + length)
    try:
        ours = frame_indices(frames=frames, fps=fps, num_segments=num_segments, bound=bound)
    except BadFrameRange:
        assert start >= frames / fps or start + length <= 0 or start + length == start
        return
    assert len(ours) == num_segments
    assert all(0 <= index < frames for index in ours)
    assert list(ours) == sorted(ours)
    if round(start * fps) < frames and round(bound[1] * fps) >= max(0, round(start * fps)):
        assert list(ours) == card.indices(frames, fps, num_segments, bound)


@pytest.mark.parametrize(
    "bound", [(5, 5), (6, 5), (10, 20), (100, 200), (-5, 0), (math.nan, 3), (0, math.inf)], ids=str
)
def test_a_bound_outside_of_the_clip_is_refused(bound: tuple[float, float]) -> None:
    with pytest.raises(BadFrameRange):
        frame_indices(frames=100, fps=10, num_segments=4, bound=bound)


def test_one_frame_is_repeated() -> None:
    assert frame_indices(frames=1, fps=25, num_segments=4) == (0, 0, 0, 0)


def test_no_frames_and_no_segments_are_refused() -> None:
    with pytest.raises(EmptyDocument):
        frame_indices(frames=0, fps=25, num_segments=4)
    with pytest.raises(InvalidParameter):
        frame_indices(frames=10, fps=25, num_segments=0)


class TestDecordReader(VideoReaderContract):
    @pytest.fixture
    def make(self) -> Callable[[Path], DecordReader]:
        return DecordReader


class TestPyAVReader(VideoReaderContract):
    @pytest.fixture
    def make(self) -> Callable[[Path], PyAVReader]:
        return PyAVReader


@pytest.mark.parametrize("name", CLIPS)
def test_both_readers_give_the_same_pixels(clips: Path, name: str) -> None:
    indices = [0, 1, 17, 40, 41, 88]
    with DecordReader(clips / name) as first, PyAVReader(clips / name) as second:
        for ours, theirs in zip(first.read(indices), second.read(indices), strict=True):
            difference = np.abs(ours.astype(int) - theirs.astype(int))
            assert difference.max() <= 2
            assert difference.mean() < 0.1


def test_frames_that_nothing_refers_to_are_skipped_without_changing_a_pixel(clips: Path) -> None:
    with PyAVReader(clips / "h264-long-gop.mkv") as video:
        alone = next(iter(video.read([77])))
    with PyAVReader(clips / "h264-long-gop.mkv") as video:
        *_, after_all = video.read(range(78))
    assert np.array_equal(alone, after_all)


def test_making_the_clips_leaves_this_process_its_priority(clips: Path) -> None:
    assert clips.joinpath("av1.mp4").stat().st_size
    assert os.sched_getscheduler(0) != os.SCHED_FIFO


def test_decord_goes_first_and_pyav_takes_what_it_refuses(clips: Path) -> None:
    with open_video(clips / "h264.mp4", LIMITS) as video:
        assert isinstance(video, DecordReader)
    with pytest.raises(CorruptMedia):
        DecordReader(clips / "av1.mp4")
    with open_video(clips / "av1.mp4", LIMITS) as video:
        assert isinstance(video, PyAVReader)
        assert [number_of(frame) for frame in video.read([0, 7, 19])] == [0, 7, 19]


def test_a_file_that_both_refuse_is_corrupt(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_bytes(b"\0\0\0\x18ftypisom" + b"\0" * 100)
    with pytest.raises(CorruptMedia):
        open_video(tmp_path / "x.mp4", LIMITS)


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame) + stream.encode(None))
    with pytest.raises(UnsupportedMedia, match="no video stream"):
        open_video(tmp_path / "a.mp4", LIMITS)


@pytest.mark.parametrize(
    "values",
    [{"width": 8193}, {"height": 9000}, {"fps": 241.0}, {"frames": 4 * 3600 * 30 + 31}],
    ids=lambda values: next(iter(values)),
)
def test_a_video_over_a_limit_is_too_large(values: dict[str, Any]) -> None:
    usual: dict[str, Any] = {"width": 100, "height": 100, "frames": 10, "fps": 30.0}
    with pytest.raises(MediaTooLarge):
        check_video(**{**usual, **values}, limits=LIMITS)


@pytest.mark.parametrize("fps", [0.0, -1.0, math.nan, math.inf])
def test_a_video_without_a_rate_is_corrupt(fps: float) -> None:
    with pytest.raises(CorruptMedia):
        check_video(width=10, height=10, frames=10, fps=fps, limits=LIMITS)


def test_the_limits_hold_for_files(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4", 10, width=160, height=128)
    with pytest.raises(MediaTooLarge):
        open_video(path, MediaLimits(video_side=159))
    with pytest.raises(MediaTooLarge):
        open_video(path, MediaLimits(video_seconds=0.3))


def test_a_clip_cut_off_in_the_middle_fails_on_the_frames_that_are_gone(clips: Path, tmp_path: Path) -> None:
    data = (clips / "h264-long-gop.mkv").read_bytes()
    path = tmp_path / "cut.mkv"
    path.write_bytes(data[: len(data) * 6 // 10])
    with PyAVReader(path) as video:
        assert 10 < video.frames < 90
        assert [number_of(frame) for frame in video.read([0, 5])] == [0, 5]
        with pytest.raises(BadFrameRange):
            list(video.read([89]))
