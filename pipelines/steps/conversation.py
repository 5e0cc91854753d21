"""From OpenAI's messages to the parameters of the kind `chat`, and the media in the order in which they are named."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.jobs.errors import InvalidParameter
from pipelines.steps.chat_request import ChatMessage, ChatRequest, ImagePart, TextPart, VideoPart

_DATA = re.compile(r"\Adata:(?P<mime>[\w.+-]+/[\w.+-]+);base64,(?P<body>.*)\Z", re.DOTALL)
_FRAMES = "video/jpeg"
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
    reader = _Reader()
    turns = [reader.turn(index, message) for index, message in enumerate(request.messages)]
    parameters: dict[str, Any] = {"messages": _merged(turns), "generation": request.generation()}
    if request.max_tiles is not None:
        parameters["max_tiles"] = request.max_tiles
    elif reader.details and all(detail == "low" for detail in reader.details):
        parameters["max_tiles"] = 1
    video = request.media_io_kwargs.video if request.media_io_kwargs else None
    if video is not None and video.num_frames > 0:
        parameters["num_segments"] = video.num_frames
    return Conversation(parameters=parameters, media=tuple(reader.media))


class _Reader:
    """Numbers the media as the messages name them."""

    def __init__(self) -> None:
        self.media: list[Medium] = []
        self.details: list[str] = []

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
                self.details.append(image.detail)
                return [self._add(_medium(image.url, "image", f"{where}.image_url.url", len(self.media)))]
            case VideoPart(video_url=video):
                return self._video(video.url, f"{where}.video_url.url")

    def _video(self, url: str, where: str) -> list[dict[str, Any]]:
        match = _DATA.match(url)
        if match is None or match["mime"] != _FRAMES:
            return [self._add(_medium(url, "video", where, len(self.media)))]
        parts: list[dict[str, Any]] = []
        for number, frame in enumerate(match["body"].split(",")):
            name = f"inline-{len(self.media)}.jpg"
            medium = InlineMedium(name=name, mime="image/jpeg", data=_decoded(frame, where))
            # The card's own way of writing frames.
            parts += [{"type": "text", "text": f"Frame{number + 1}: "}, self._add(medium)]
        return parts

    def _add(self, medium: Medium) -> dict[str, Any]:
        self.media.append(medium)
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
