"""InternVL-Chat-V1-5's prompt, to the character.

    <s><|im_start|>system\n{SYS}<|im_end|><|im_start|>user\n{q}<|im_end|><|im_start|>assistant\n

There is no newline after `<|im_end|>` (template `internlm2-chat` of the original's `conversation.py`). Each `<image>`
becomes `<img>` + `<IMG_CONTEXT>` x (tokens a tile x tiles) + `</img>`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.engine.errors import BadRequest, EmptyPrompt
from pipelines.engine.tokenizer import BOS, IM_END, IM_START, IMG_CONTEXT, IMG_END, IMG_START, Part, Special, Tokenizer

SYSTEM_MESSAGE = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
PLACEHOLDER = "<image>"


@dataclass(frozen=True, kw_only=True)
class Span:
    """Where the visual tokens of one image stand in the prompt: `[start, end)`."""

    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt's ids and, image by image, the span of its visual tokens."""

    ids: tuple[int, ...]
    spans: tuple[Span, ...]


def video_prefix(frames: int) -> str:
    """Return `Frame1: <image>\\nFrame2: <image>\\n…`, which stands before a question on a video."""
    return "".join(f"Frame{number}: {PLACEHOLDER}\n" for number in range(1, frames + 1))


def with_placeholders(turns: Sequence[str], images: int) -> tuple[str, ...]:
    """Prepend `<image>\\n` to the first user turn where there are images and no placeholder (the original's rule)."""
    if not images or any(PLACEHOLDER in turn for turn in turns):
        return tuple(turns)
    return (f"{PLACEHOLDER}\n" * images + turns[0], *turns[1:])


def build_parts(
    question: str,
    *,
    history: Sequence[tuple[str, str]],
    counts: Sequence[int],
    tokens_per_tile: int,
    system: str | None = None,
) -> list[Part]:
    """Return the prompt as parts.

    Args:
        question: the last user turn.
        history: earlier turns, (question, answer).
        counts: tiles of each image, in the order of the placeholders.
        tokens_per_tile: visual tokens of one tile.
        system: None for the model's own system message.

    Raises:
        EmptyPrompt: neither text nor images.
        BadRequest: an image without a placeholder, or without tiles. Surplus placeholders stay text.
    """
    if not question.strip() and not counts:
        raise EmptyPrompt("the question is empty and there is no image")
    if any(count < 1 for count in counts):
        raise BadRequest("an image has no tiles")
    users = with_placeholders([user for user, _ in history] + [question], len(counts))
    pending = list(counts)
    parts: list[Part] = [Special(BOS), *_turn("system", SYSTEM_MESSAGE if system is None else system)]
    for number, user in enumerate(users):
        parts += [Special(IM_START), "user\n"]
        for place, text in enumerate(user.split(PLACEHOLDER)):
            if place and pending:
                visual = Special(IMG_CONTEXT, tokens_per_tile * pending.pop(0))
                parts += [Special(IMG_START), visual, Special(IMG_END)]
            elif place:
                parts.append(PLACEHOLDER)
            parts.append(text)
        parts.append(Special(IM_END))
        if number < len(history):
            parts += _turn("assistant", history[number][1])
    if pending:
        raise BadRequest(f"{len(counts)} images but only {len(counts) - len(pending)} {PLACEHOLDER} placeholders")
    return [*parts, Special(IM_START), "assistant\n"]


def _turn(role: str, text: str) -> list[Part]:
    return [Special(IM_START), f"{role}\n{text}", Special(IM_END)]


def encode(tokenizer: Tokenizer, parts: Sequence[Part]) -> Prompt:
    """Return the ids and the spans of the visual tokens; a run of `<IMG_CONTEXT>` is one image's."""
    ids = tokenizer.encode(parts)
    lengths = [part.count for part in parts if isinstance(part, Special) and part.name == IMG_CONTEXT]
    spans: list[Span] = []
    at = 0
    for length in lengths:
        start = ids.index(tokenizer.image_token, at)
        spans.append(Span(start=start, end=start + length))
        at = start + length
    return Prompt(ids=tuple(ids), spans=tuple(spans))
