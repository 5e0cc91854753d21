"""From OpenAI's messages to the parameters of the kind `chat`, and the media in the order in which they are named."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.jobs.errors import InvalidParameter
from pipelines.kinds.base import Preprocessing
from pipelines.media.frames import frame_indices
from pipelines.steps.chat_request import ChatMessage, ChatRequest, ImagePart, TextPart, VideoOptions, VideoPart

_DATA = re.compile(r"\Adata:(?P<mime>[\w.+-]+/[\w.+-]+);base64,(?P<body>.*)\Z", re.DOTALL)
_FRAMES = "video/jpeg"
_MOST_FRAMES = 2_048
_TILES = Preprocessing.max_tiles
_ENDINGS = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/webp": "webp",
    "image/gif": "gif",
    "image/bmp": "bmp",
    "video/mp4": "mp4",
    "video/webm": "webm",
    "video/quicktime": "mov",
}


@dataclass(frozen=True, kw_only=True)
class InlineMedium:
    """Bytes that came inside the request."""

    name: str
    mime: str
    data: bytes


Medium = str | InlineMedium
"""An address, or the bytes themselves."""


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Parameters of the kind `chat`, and its media in order."""

    parameters: dict[str, Any]
    media: tuple[Medium, ...]


def conversation_of(request: ChatRequest) -> Conversation:
    """Raises `InvalidParameter`, naming the message and the part."""
    reader = _Reader(request.media_io_kwargs.video if request.media_io_kwargs else None)
    turns = [reader.turn(index, message) for index, message in enumerate(request.messages)]
    parameters: dict[str, Any] = {"messages": _merged(turns), "generation": request.generation()}
    parameters |= reader.tiles(request.max_tiles)
    if reader.video is not None and reader.has_videos:
        parameters |= _sampling(reader.video)
    return Conversation(parameters=parameters, media=tuple(reader.media))


def _sampling(video: VideoOptions) -> dict[str, Any]:
    if video.fps is not None:
        return {"fps": video.fps, "num_segments": _MOST_FRAMES if video.num_frames < 0 else video.num_frames}
    if video.num_frames < 0:
        raise InvalidParameter(
            "-1 means all frames that were sent; say how many of a video's are wanted, or give fps",
            param="media_io_kwargs.video.num_frames",
        )
    return {"num_segments": video.num_frames}


class _Reader:
    """Numbers the media as the messages name them."""

    def __init__(self, video: VideoOptions | None) -> None:
        self.video = video
        self.media: list[Medium] = []
        self.has_videos = False
        self._low: list[bool] = []  # one a medium: a single tile, whatever the request allows

    def tiles(self, most: int | None) -> dict[str, Any]:
        """The tiles of all media where they agree, else of each."""
        if any(self._low) and not all(self._low):
            return {
                "max_tiles": most or _TILES,
                "media_tiles": [1 if low else most or _TILES for low in self._low],
            }
        chosen = 1 if self._low and all(self._low) else most
        return {} if chosen is None else {"max_tiles": chosen}

    def turn(self, index: int, message: ChatMessage) -> dict[str, Any]:
        role = "system" if message.role == "developer" else message.role
        content = message.content
        if content is None:
            raise InvalidParameter("content is missing; send text or parts", param=f"messages.{index}.content")
        if isinstance(content, str):
            return {"role": role, "content": [{"type": "text", "text": content}]}
        parts: list[dict[str, Any]] = []
        for number, part in enumerate(content):
            where = f"messages.{index}.content.{number}"
            if role != "user" and not isinstance(part, TextPart):
                raise InvalidParameter("only user messages may hold media", param=where)
            parts.extend(self._part(part, where))
        return {"role": role, "content": parts}

    def _part(self, part: TextPart | ImagePart | VideoPart, where: str) -> list[dict[str, Any]]:
        match part:
            case TextPart(text=text):
                return [{"type": "text", "text": text}]
            case ImagePart(image_url=image):
                medium = _medium(image.url, "image", f"{where}.image_url.url", len(self.media))
                return [self._add(medium, low=image.detail == "low")]
            case VideoPart(video_url=video):
                return self._video(video.url, f"{where}.video_url.url")

    def _video(self, url: str, where: str) -> list[dict[str, Any]]:
        match = _DATA.match(url)
        if match is None or match["mime"].lower() != _FRAMES:
            self.has_videos = True
            return [self._add(_medium(url, "video", where, len(self.media)), low=True)]
        parts: list[dict[str, Any]] = []
        for number, frame in enumerate(self._chosen(match["body"].split(","))):
            name = f"inline-{len(self.media)}.jpg"
            medium = InlineMedium(name=name, mime="image/jpeg", data=_decoded(frame, where))
            # The card's own way of writing frames, one tile each.
            parts += [{"type": "text", "text": f"Frame{number + 1}: "}, self._add(medium, low=True)]
        return parts

    def _chosen(self, frames: list[str]) -> list[str]:
        """All frames that were sent, or so many of them as are wanted, by the card's index rule."""
        if self.video is None:
            return frames
        if self.video.fps is not None:
            raise InvalidParameter(
                "frames that were sampled before have no times; leave fps out, or send the video",
                param="media_io_kwargs.video.fps",
            )
        if not 0 < self.video.num_frames < len(frames):
            return frames
        return [frames[at] for at in frame_indices(frames=len(frames), fps=1.0, num_segments=self.video.num_frames)]

    def _add(self, medium: Medium, *, low: bool) -> dict[str, Any]:
        self.media.append(medium)
        self._low.append(low)
        return {"type": "media", "index": len(self.media) - 1}


def _medium(url: str, group: str, where: str, number: int) -> Medium:
    if not url.startswith("data:"):
        if not url.startswith(("https://", "http://", "s3://")):
            raise InvalidParameter("send the medium as https://…, s3://… or data:…;base64,…", param=where)
        return url
    match = _DATA.match(url)
    if match is None:
        raise InvalidParameter(f"the data URL must read data:{group}/…;base64,…", param=where)
    mime = match["mime"].lower()
    if mime not in _ENDINGS or not mime.startswith(f"{group}/"):
        known = ", ".join(name for name in _ENDINGS if name.startswith(group))
        raise InvalidParameter(f"{mime} is not read here; the types are {known}", param=where)
    return InlineMedium(name=f"inline-{number}.{_ENDINGS[mime]}", mime=mime, data=_decoded(match["body"], where))


def _decoded(text: str, where: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidParameter("the data URL is not base64", param=where) from error
    if not data:
        raise InvalidParameter("the data URL is empty", param=where)
    return data


def _merged(turns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Neighbours of one role become one turn, a line break between them: the model's template alternates."""
    merged: list[dict[str, Any]] = []
    for turn in turns:
        if merged and merged[-1]["role"] == turn["role"]:
            merged[-1]["content"] += [{"type": "text", "text": "\n"}, *turn["content"]]
        else:
            merged.append({"role": turn["role"], "content": list(turn["content"])})
    return merged
