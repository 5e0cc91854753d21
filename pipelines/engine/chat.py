"""`chat`, `batch_chat` and streaming with the model card's signatures, over any engine that takes tiles.

Where the original's two functions differ, `chat` semantics hold for both: many images, history and video for every
sample of a batch. `tokenizer` and `verbose` arguments are taken for the card's sake; the engine has its own
tokenizer.
"""

# ruff: noqa: FBT001, FBT002, PLR0917 - these are the model card's signatures, positions and all

from __future__ import annotations

import hashlib
import queue
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np
import torch

from pipelines.engine.errors import BadRequest
from pipelines.engine.params import parse_params
from pipelines.engine.prompt import with_placeholders
from pipelines.engine.tokenizer import IM_END
from pipelines.engine.types import Engine, EngineRequest, Handle, Priority, Tiles, Uint8Tiles
from pipelines.engine.vision import MEAN, STD

History = list[tuple[str, str]]
Counts = Sequence[int]


@dataclass(frozen=True, kw_only=True)
class ConversationTemplate:
    """What the card's streaming loop looks at: `sep`, which ends a turn."""

    name: str = "internlm2-chat"
    sep: str = IM_END


class TextIteratorStreamer:
    """Pieces of one answer, for a loop in another thread. `timeout` in seconds; None waits for ever.

    The arguments of transformers' class of this name are taken; prompt and special tokens are never in the text.
    Raises `queue.Empty` where no piece comes in time.
    """

    def __init__(
        self,
        tokenizer: object = None,  # noqa: ARG002 - see above
        skip_prompt: bool = True,  # noqa: ARG002
        timeout: float | None = None,
        *,
        skip_special_tokens: bool = True,  # noqa: ARG002
    ) -> None:
        self._timeout = timeout
        self._pieces: queue.Queue[str | None] = queue.Queue()

    def put(self, text: str) -> None:
        """Add a piece."""
        self._pieces.put(text)

    def end(self) -> None:
        """Finish the answer."""
        self._pieces.put(None)

    def __iter__(self) -> Iterator[str]:
        """Pieces until the end."""
        while (piece := self._pieces.get(timeout=self._timeout)) is not None:
            yield piece


class ChatModel:
    """The card's model object, over an engine that takes tiles."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.conv_template = ConversationTemplate()
        self._prefix = secrets.token_hex(4)
        self._count = 0

    @overload
    def chat(
        self,
        tokenizer: object,
        pixel_values: Any,
        question: str,
        generation_config: Mapping[str, Any],
        history: History | None = None,
        return_history: Literal[False] = False,
        num_patches_list: Counts | None = None,
        verbose: bool = False,
    ) -> str: ...

    @overload
    def chat(
        self,
        tokenizer: object,
        pixel_values: Any,
        question: str,
        generation_config: Mapping[str, Any],
        history: History | None = None,
        *,
        return_history: Literal[True],
        num_patches_list: Counts | None = None,
        verbose: bool = False,
    ) -> tuple[str, History]: ...

    def chat(
        self,
        tokenizer: object,
        pixel_values: Any,
        question: str,
        generation_config: Mapping[str, Any],
        history: History | None = None,
        return_history: bool = False,
        num_patches_list: Counts | None = None,
        verbose: bool = False,
    ) -> str | tuple[str, History]:
        """Answer one question.

        Args:
            tokenizer: unused.
            pixel_values: None; uint8 tiles `[n, S, S, 3]`; or the card's normalised floats `[n, 3, S, S]`.
            question: may hold `<image>` placeholders; without one, the first turn gets one for each image.
            generation_config: options of `GenerationParams`, and `streamer`. An unknown option is an error.
            history: earlier (question, answer) turns.
            return_history: also return the history with this turn.
            num_patches_list: tiles of each image; None: all tiles are one image.
            verbose: unused.
        """
        del tokenizer, verbose
        options = dict(generation_config)
        streamer = options.pop("streamer", None)
        media = _tiles(pixel_values, num_patches_list, self.engine.info.image_size)
        if not history and media is not None:
            question = with_placeholders([question], len(media.counts))[0]
        handle = self._submit(question, history or [], media, options, streamer)
        try:
            answer = handle.future.result().text
        finally:
            if streamer is not None:
                streamer.end()
        return (answer, [*(history or []), (question, answer)]) if return_history else answer

    def batch_chat(
        self,
        tokenizer: object,
        pixel_values: Any,
        questions: Sequence[str],
        generation_config: Mapping[str, Any],
        num_patches_list: Sequence[int | Counts] | None = None,
        history: Sequence[History] | None = None,
        return_history: bool = False,
    ) -> list[str] | tuple[list[str], list[History]]:
        """Answer one question a sample, all in one continuous batch.

        `num_patches_list` holds, for each sample, its tiles as one image (a number) or of each of its images (a list).
        `history` holds one history a sample; the other arguments are those of `chat`.
        """
        del tokenizer
        if pixel_values is not None and (num_patches_list is None or len(num_patches_list) != len(questions)):
            raise BadRequest("num_patches_list must hold one entry a question", param="num_patches_list")
        if history is not None and len(history) != len(questions):
            raise BadRequest("history must hold one history a question", param="history")
        handles, asked = [], []
        at = 0
        for number, text in enumerate(questions):
            media = None
            if pixel_values is not None and num_patches_list is not None:
                entry = num_patches_list[number]
                counts = [entry] if isinstance(entry, int) else list(entry)
                media = _tiles(pixel_values[at : at + sum(counts)], counts, self.engine.info.image_size)
                at += sum(counts)
            past = list(history[number]) if history is not None else []
            question = with_placeholders([text], len(media.counts))[0] if media is not None and not past else text
            handles.append(self._submit(question, past, media, dict(generation_config), None))
            asked.append((past, question))
        answers = [handle.future.result().text for handle in handles]
        if not return_history:
            return answers
        return answers, [[*past, (question, answer)] for (past, question), answer in zip(asked, answers, strict=True)]

    def _submit(
        self, question: str, history: History, media: Tiles | None, options: dict[str, Any], streamer: Any
    ) -> Handle:
        self._count += 1
        return self.engine.submit(
            EngineRequest(
                request_id=f"chat-{self._prefix}-{self._count}",
                question=question,
                history=tuple(history),
                media=media,
                params=parse_params(options),
                priority=Priority.INTERACTIVE,
            ),
            on_text=None if streamer is None else streamer.put,
        )


def _tiles(pixel_values: Any, counts: Counts | None, size: int) -> Tiles | None:
    if pixel_values is None:
        return None
    pixels = _uint8(pixel_values, size)
    counts = [len(pixels)] if counts is None else counts
    if sum(counts) != len(pixels):
        raise BadRequest(f"num_patches_list adds up to {sum(counts)}, but there are {len(pixels)} tiles")
    digests = []
    at = 0
    for count in counts:
        digests.append(hashlib.sha256(np.ascontiguousarray(pixels[at : at + count]).data).hexdigest())
        at += count
    return Tiles(pixels=pixels, counts=tuple(counts), digests=tuple(digests))


def _uint8(pixel_values: Any, size: int) -> Uint8Tiles:
    """The card's normalised floats are turned back into the pixels they came from: the engine normalises by itself."""
    if isinstance(pixel_values, np.ndarray) and pixel_values.dtype == np.uint8:
        return pixel_values
    floats = torch.as_tensor(pixel_values).detach().to("cpu", torch.float32)
    if floats.dim() != 4 or tuple(floats.shape[1:]) != (3, size, size):
        raise BadRequest(
            f"pixel_values must be uint8 [n, {size}, {size}, 3] or normalised floats [n, 3, {size}, {size}]"
        )
    deviation, mean = torch.tensor(STD)[:, None, None], torch.tensor(MEAN)[:, None, None]
    pixels = ((floats * deviation + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    found: Uint8Tiles = pixels.permute(0, 2, 3, 1).contiguous().numpy()
    return found
