"""The OpenAI chat completions format: a request as JSON, and a streamed answer (server-sent events) as text."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pipelines.engine.errors import BadRequest, RemoteRefused, RemoteUnavailable
from pipelines.engine.prompt import PLACEHOLDER, with_placeholders
from pipelines.engine.types import EncodedImage, EncodedImages, EngineRequest, FinishReason, GenerationParams

_FRAME_LINE = re.compile(r"Frame\d+: <image>\n")


def build_body(request: EngineRequest, *, model: str, video: str, extensions: bool) -> dict[str, Any]:
    """Return the JSON of a streamed chat completion. Media become `data:` URLs at their placeholders, in order."""
    media = request.media if isinstance(request.media, EncodedImages) else None
    images = list(media.images) if media else []
    turns = [user for user, _ in request.history] + [request.question]
    body = _options(request.params, extensions=extensions) | {
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    one_part = video == "jpeg_frames" and media is not None and media.video and _all_jpeg(images)
    if one_part:
        body["media_io_kwargs"] = {"video": {"num_frames": -1}}
        users: list[list[dict[str, Any]]] = [[_text(_FRAME_LINE.sub("", turn))] for turn in turns]
        users[0].insert(0, _frames(images))
    else:
        queue = list(images)
        users = [_parts(turn, queue) for turn in with_placeholders(turns, len(images))]
        if queue:
            raise BadRequest(f"{len(images)} images but fewer {PLACEHOLDER} placeholders")
    messages: list[dict[str, Any]] = []
    if request.system is not None:
        messages.append({"role": "system", "content": request.system})
    for number, parts in enumerate(users):
        plain = len(parts) == 1 and parts[0]["type"] == "text"
        messages.append({"role": "user", "content": parts[0]["text"] if plain else parts})
        if number < len(request.history):
            messages.append({"role": "assistant", "content": request.history[number][1]})
    if request.prefix is not None:
        messages.append({"role": "assistant", "content": request.prefix.text})
        if extensions:
            body |= {"continue_final_message": True, "add_generation_prompt": False}
    body["messages"] = messages
    return body


def _options(params: GenerationParams, *, extensions: bool) -> dict[str, Any]:
    body: dict[str, Any] = {
        "max_tokens": params.max_new_tokens,
        # Temperature 0 is how this format says "greedy".
        "temperature": params.temperature if params.do_sample else 0.0,
    }
    if params.do_sample:
        body["top_p"] = params.top_p
        if params.seed is not None:
            body["seed"] = params.seed
    if params.stop:
        body["stop"] = list(params.stop)
    if extensions:
        if params.do_sample:
            body["top_k"] = params.top_k if params.top_k else -1
        if params.repetition_penalty != 1.0:
            body["repetition_penalty"] = params.repetition_penalty
    elif params.repetition_penalty != 1.0:
        raise BadRequest("this server takes no repetition penalty", param="repetition_penalty")
    return body


def _parts(turn: str, queue: list[EncodedImage]) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    text = ""
    for place, piece in enumerate(turn.split(PLACEHOLDER)):
        if place and queue:
            if text.strip():
                parts.append(_text(text))
            parts.append(_image(queue.pop(0)))
            text = piece.removeprefix("\n")
        else:
            text += (PLACEHOLDER if place else "") + piece
    if text.strip() or not parts:
        parts.append(_text(text))
    return parts


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _image(image: EncodedImage) -> dict[str, Any]:
    data = base64.b64encode(image.data).decode("ascii")
    return {"type": "image_url", "image_url": {"url": f"data:{image.mime};base64,{data}"}}


def _frames(images: list[EncodedImage]) -> dict[str, Any]:
    data = ",".join(base64.b64encode(image.data).decode("ascii") for image in images)
    return {"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{data}"}}


def _all_jpeg(images: list[EncodedImage]) -> bool:
    return all(image.mime == "image/jpeg" for image in images)


@dataclass(kw_only=True)
class Answer:
    """What has arrived of an answer, behind the text that it goes on with. `first`: when text came (monotonic)."""

    text: str = ""
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    first: float | None = None


def read_answer(lines: Iterable[str], answer: Answer) -> Iterator[str]:
    """Yield the pieces of text of an event stream and fill `answer`; the pieces join to its new text, stripped.

    White space at the beginning stays where the answer goes on with a text: it is what stands at the seam.
    """
    held = ""
    for line in lines:
        if not line.startswith("data:"):
            continue
        data = line[5:].strip()
        if data == "[DONE]":
            break
        chunk = _chunk(data)
        usage = chunk.get("usage") or {}
        if usage:
            answer.prompt_tokens = int(usage.get("prompt_tokens") or 0)
            answer.completion_tokens = int(usage.get("completion_tokens") or 0)
            answer.cached_tokens = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
        for choice in chunk.get("choices") or []:
            if piece := (choice.get("delta") or {}).get("content"):
                answer.first = answer.first or time.monotonic()
                if not usage:
                    answer.completion_tokens += 1
                held += piece
                ready = held if answer.text else held.lstrip()
                body = ready.rstrip()
                held = ready[len(body) :]
                if body:
                    answer.text += body
                    yield body
            if reason := choice.get("finish_reason"):
                answer.finish_reason = _reason(reason)


def _chunk(data: str) -> dict[str, Any]:
    try:
        chunk = json.loads(data)
    except ValueError as error:
        raise RemoteUnavailable("the remote engine sent something that is not JSON") from error
    if not isinstance(chunk, dict):
        raise RemoteUnavailable("the remote engine sent something unexpected")
    if failure := chunk.get("error"):
        unavailable = RemoteUnavailable("the remote engine failed in the middle of its answer")
        unavailable.__cause__ = ValueError(str(failure)[:2000])
        raise unavailable
    return chunk


def _reason(reason: str) -> FinishReason:
    if reason == "stop":
        return FinishReason.STOP
    if reason == "length":
        return FinishReason.LENGTH
    raise RemoteRefused(f"the remote engine ended its answer with {reason[:40]!r}")
