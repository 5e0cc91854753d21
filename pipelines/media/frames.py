"""Which frames of a video are looked at, and the readers that fetch them.

`DecordReader` comes first: it is what the model card reads with, so frame numbers mean the same. `PyAVReader` takes the
files that decord refuses (AV1, for one). One conformance suite holds both to the same pixels.
"""

from __future__ import annotations

import importlib
import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from pipelines.jobs.errors import (
    BadFrameRange,
    BatchsightError,
    CorruptMedia,
    EmptyDocument,
    InvalidParameter,
    MediaTooLarge,
    UnsupportedMedia,
)
from pipelines.media.limits import MediaLimits

Frame = NDArray[np.uint8]
Bound = tuple[float, float]

# The card's stand-ins for "from the beginning" and "to the end", in seconds.
_BEGINNING, _END = -100_000.0, 100_000.0


def frame_indices(*, frames: int, fps: float, num_segments: int, bound: Bound | None = None) -> tuple[int, ...]:
    """The middles of `num_segments` equal stretches of the clip, or of `bound` (start and end in seconds).

    The card's `get_index`: with `seg = (end - start) / num_segments`, index i is `int(start + seg/2 + round(seg *
    i))`, rounded half to even. Indices never leave the clip and never fall; short clips repeat frames. Raises
    `EmptyDocument`, `InvalidParameter` (num_segments), `BadFrameRange` where the bound is empty or outside of the
    clip.
    """
    if frames < 1:
        raise EmptyDocument("The video holds no frame.")
    if num_segments < 1:
        raise InvalidParameter("num_segments must be at least 1.", param="num_segments")
    start, end = (_BEGINNING, _END) if bound is None else _checked(bound, frames / fps)
    last = frames - 1
    first_index = min(max(0, round(start * fps)), last)
    last_index = max(min(round(end * fps), last), first_index)
    segment = (last_index - first_index) / num_segments
    offsets = np.round(segment * np.arange(num_segments))
    return tuple(min(int(first_index + segment / 2 + offset), last) for offset in offsets.tolist())


def segments_at(rate: float, *, frames: int, fps: float, bound: Bound | None = None, most: int) -> int:
    """How many frames a clip, or `bound` of it, gives at `rate` frames a second: at least one, at most `most`."""
    seconds = frames / fps
    if bound is not None:
        start, end = _checked(bound, seconds)
        seconds = min(end, seconds) - max(start, 0.0)
    return max(1, min(most, int(seconds * rate + 1e-6)))  # 2.0 s written as 1.9999999 s are two seconds


def _checked(bound: Bound, seconds: float) -> Bound:
    start, end = bound
    if not (math.isfinite(start) and math.isfinite(end)) or end <= start:
        raise BadFrameRange(f"The bound must be two rising numbers of seconds; it is {start} to {end}.", param="bound")
    if start >= seconds or end <= 0:
        raise BadFrameRange(
            f"The bound {start} to {end} s lies outside of the video, which is {seconds:.2f} s long.", param="bound"
        )
    return start, end


class VideoReader(Protocol):
    """An open video. Use it in a `with` statement, in one thread."""

    @property
    def frames(self) -> int:
        """Number of frames, counted (not what the header claims)."""

    @property
    def fps(self) -> float:
        """Average frames a second."""

    @property
    def width(self) -> int:
        """Pixels."""

    @property
    def height(self) -> int:
        """Pixels."""

    def read(self, indices: Sequence[int]) -> Iterator[Frame]:
        """Frames by number, in the order given: uint8 `[height, width, 3]`, RGB.

        One frame is held at a time; equal neighbours are decoded once; rising order is fastest. Raises `CorruptMedia`.
        """

    def __enter__(self) -> Self:
        """The reader."""

    def __exit__(self, *exc: object) -> None:
        """Close the file."""


class _Base(ABC):
    """What both readers share: the order of reading and the checks."""

    frames: int
    fps: float
    width: int
    height: int

    def read(self, indices: Sequence[int]) -> Iterator[Frame]:
        previous: tuple[int, Frame] | None = None
        for position, index in enumerate(indices):
            if not 0 <= index < self.frames:
                raise BadFrameRange(f"Frame {index} is not in the video, which has {self.frames} frames.")
            if previous is None or previous[0] != index:
                previous = (index, self._frame(index, indices[position + 1 :]))
            yield previous[1]

    @abstractmethod
    def _frame(self, index: int, upcoming: Sequence[int]) -> Frame:
        """Decode one frame; `upcoming` are those that will be asked for next."""

    @abstractmethod
    def close(self) -> None:
        """Close the file. Repeatable."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class DecordReader(_Base):
    """decord, frame by frame: it seeks to a key frame only when the next frame lies behind another one."""

    def __init__(self, path: Path) -> None:
        # 40 MB of native code that only children with a video need, and without types.
        decord: Any = importlib.import_module("decord")

        self._errors: tuple[type[Exception], ...] = (decord.DECORDError, RuntimeError, IndexError)
        try:
            self._video: Any = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
            self.frames = len(self._video)
            self.fps = float(self._video.get_avg_fps())
            if self.frames < 1:
                raise CorruptMedia("The video holds no frame that decodes.")
            self.height, self.width = self._video[0].shape[:2]
        except self._errors as error:
            raise CorruptMedia("The video does not open; it is damaged or of a codec that is not read.") from error

    def _frame(self, index: int, upcoming: Sequence[int]) -> Frame:
        del upcoming
        try:
            frame: Frame = self._video[index].asnumpy()
        except self._errors as error:
            raise CorruptMedia(f"Frame {index} of the video does not decode.") from error
        return frame

    def close(self) -> None:
        """Drop the native handle."""
        self._video = None


class PyAVReader(_Base):
    """FFmpeg through PyAV.

    All packets are listed once without decoding, so frame numbers are exact. On the way to a wanted frame, frames that
    no other frame refers to are not decoded: that halves the work on usual H.264 and changes no pixel.
    """

    def __init__(self, path: Path) -> None:
        import av  # noqa: PLC0415 - native code that only children with a video need

        self._errors: tuple[type[Exception], ...] = (av.FFmpegError, ValueError, IndexError, EOFError)
        self._container: Any = None
        try:
            self._container = av.open(str(path), metadata_errors="ignore")
            self._index()
        except self._errors as error:
            self.close()
            raise CorruptMedia("The video does not open; it is damaged or of a codec that is not read.") from error
        except BatchsightError:
            self.close()
            raise

    def _index(self) -> None:
        if not self._container.streams.video:
            raise UnsupportedMedia("The file holds no video stream.")
        stream = self._stream = self._container.streams.video[0]
        self._context = stream.codec_context
        if self._context is None:
            raise UnsupportedMedia("The codec of the video is not read here.")
        self._context.thread_count = 1  # cores are shared by worker processes; threads would only fight over them
        times: list[int] = []
        keys: list[int] = []
        for packet in self._container.demux(stream):
            if packet.pts is None or packet.is_discard:
                continue
            times.append(packet.pts)
            if packet.is_keyframe:
                keys.append(packet.pts)
        if not times:
            raise EmptyDocument("The video holds no frame.")
        self._times = np.array(sorted(times), np.int64)
        self._keys = sorted(keys) or [int(self._times[0])]
        self.frames = len(self._times)
        self.fps = float(stream.average_rate or stream.guessed_rate or 0)
        self._position: int | None = None  # presentation time of the last frame that was decoded
        self._decoded: Iterator[Any] = iter(())
        self._wanted: set[int] = set()
        first = self._frame(0, ())
        self.height, self.width = first.shape[:2]

    def _key_before(self, time: int) -> int:
        return self._keys[max(0, bisect_right(self._keys, time) - 1)]

    def _frame(self, index: int, upcoming: Sequence[int]) -> Frame:
        time = int(self._times[index])
        # Those that follow are wanted too, for the decoder runs ahead of the frames that it gives out.
        self._wanted = {time, *(int(self._times[i]) for i in upcoming[:_LOOKAHEAD] if 0 <= i < self.frames)}
        key = self._key_before(time)
        try:
            if self._position is not None and self._position < time and key <= self._position:
                found = self._seek_forward(time)
                if found is not None:
                    return self._pixels(found)
            # Behind us, behind another key frame, or skipped by the decoder before it was wanted.
            self._container.seek(key, stream=self._stream, backward=True)
            self._context.flush_buffers()
            self._decoded = self._run()
            found = self._seek_forward(time)
        except self._errors as error:
            self._position = None
            raise CorruptMedia(f"Frame {index} of the video does not decode.") from error
        if found is None:
            raise CorruptMedia(f"Frame {index} of the video does not decode.")
        return self._pixels(found)

    def _seek_forward(self, time: int) -> Any:
        """The frame of this presentation time; None where the decoder passes it by or ends."""
        for frame in self._decoded:
            if frame.pts is None:
                continue
            self._position = frame.pts
            if frame.pts == time:
                return frame
            if frame.pts > time:
                break
        self._position = None
        return None

    def _run(self) -> Iterator[Any]:
        for packet in self._container.demux(self._stream):
            keep = packet.pts is None or packet.pts in self._wanted
            self._context.skip_frame = "DEFAULT" if keep else "NONREF"
            yield from packet.decode()

    @staticmethod
    def _pixels(frame: Any) -> Frame:
        pixels: Frame = frame.to_ndarray(format="rgb24")
        quarter_turns = round(frame.rotation / 90) % 4
        return np.ascontiguousarray(np.rot90(pixels, quarter_turns)) if quarter_turns else pixels

    def close(self) -> None:
        """Close the container."""
        if self._container is not None:
            self._container.close()
            self._container = None


_LOOKAHEAD = 8

READERS: dict[str, Callable[[Path], DecordReader | PyAVReader]] = {"decord": DecordReader, "pyav": PyAVReader}


def open_video(
    path: Path, limits: MediaLimits, *, readers: Sequence[str] = ("decord", "pyav")
) -> DecordReader | PyAVReader:
    """The first reader that opens the file and decodes its first frame; what the last one raised where none does.

    Raises `MediaTooLarge` (sides, length or rate), `CorruptMedia`, `UnsupportedMedia`, `EmptyDocument`.
    """
    refused: BatchsightError | None = None
    for name in readers:
        try:
            reader = READERS[name](path)
        except (BatchsightError, ImportError) as error:  # decord has no build for every machine
            refused = error if isinstance(error, BatchsightError) else refused
            continue
        try:
            check_video(width=reader.width, height=reader.height, frames=reader.frames, fps=reader.fps, limits=limits)
        except BatchsightError:
            reader.close()
            raise
        return reader
    raise refused or UnsupportedMedia("No video reader is installed on this worker.")


def check_video(*, width: int, height: int, frames: int, fps: float, limits: MediaLimits) -> None:
    """Raise `MediaTooLarge` or `CorruptMedia` for a video that is not to be decoded."""
    if not math.isfinite(fps) or fps <= 0:
        raise CorruptMedia("The video names no frame rate.")
    if max(width, height) > limits.video_side:
        raise MediaTooLarge(f"The video is {width} x {height}; at most {limits.video_side} pixels a side are accepted.")
    if fps > limits.video_fps:
        raise MediaTooLarge(f"The video has {fps:.0f} frames a second; at most {limits.video_fps:.0f} are accepted.")
    if frames / fps > limits.video_seconds:
        raise MediaTooLarge(
            f"The video is {frames / fps:.0f} s long; at most {limits.video_seconds:.0f} s are accepted."
        )
