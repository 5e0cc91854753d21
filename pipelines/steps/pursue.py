"""Beyond the first answer: asking again with the page turned, and going on where an answer was cut off.

A kind says how far to go (`Effort`); the default is not at all. Turning comes first, so that nobody goes on with the
garbage of a page that lies on its side. Both are bounded: three more answers, and as many continuations as the kind
allows. Everything that was asked is kept in the reply, for it was paid for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pipelines.engine.errors import BadRequest, PromptTooLong, RemoteRefused
from pipelines.engine.types import AnswerPrefix, Completion, EncodedImages, FinishReason, Handle, Tiles
from pipelines.kinds.base import Effort, MediumView, Output
from pipelines.media.pack import tile_digests
from pipelines.media.turn import DEGREES, turn_tiles

Media = Tiles | EncodedImages | None


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What became of one question: the answer that stands, and every completion that was made on the way to it.

    `rotation`: by how many degrees clockwise the page was turned for the answer.
    """

    answer: Completion
    asked: tuple[Completion, ...]
    continuations: int = 0
    rotation: int = 0


@dataclass(frozen=True, kw_only=True)
class Pursuit:
    """How one question is put again. `submit` takes the media, an answer to go on with, and a name for the request."""

    effort: Effort
    media: Media
    views: tuple[MediumView, ...]
    continues: bool
    submit: Callable[[Media, AnswerPrefix | None, str], Handle]
    wait: Callable[[Handle], Completion]

    def follow(self, first: Completion) -> Reply:
        """From the first answer to the one that stands."""
        return self._gone_on(self._turned(Reply(answer=first, asked=(first,))))

    def _turned(self, reply: Reply) -> Reply:
        if not (self.effort.turn and is_doubtful(reply.answer, self.effort)):
            return reply
        handles = {
            degrees: self.submit(media, None, f"turned-{degrees}")
            for degrees in DEGREES
            if (media := turned(self.media, self.views, degrees)) is not None
        }
        answers = {0: reply.answer, **{degrees: self.wait(handle) for degrees, handle in handles.items()}}
        best = max(answers, key=lambda degrees: _worth(answers[degrees]))
        return Reply(answer=answers[best], asked=tuple(answers.values()), rotation=best)

    def _gone_on(self, reply: Reply) -> Reply:
        media = turned(self.media, self.views, reply.rotation) if reply.rotation else self.media
        while (
            self.continues
            and reply.answer.finish_reason is FinishReason.LENGTH
            and reply.continuations < self.effort.continuations
        ):
            answer, number = reply.answer, reply.continuations + 1
            prefix = AnswerPrefix(text=answer.text, token_ids=answer.token_ids)
            try:
                more = self.wait(self.submit(media, prefix, f"more-{number}"))
            except (PromptTooLong, BadRequest, RemoteRefused):
                break  # the context is full: what there is stands, and is flagged as cut off
            reply = replace(reply, answer=joined(answer, more), asked=(*reply.asked, more), continuations=number)
        return reply


def is_doubtful(answer: Completion, effort: Effort) -> bool:
    """Whether an answer repeats itself, or the model was less sure of it than the kind asks for."""
    return answer.degenerate or _is_unsure(answer, effort)


def told(output: Output, replies: Sequence[Reply], effort: Effort) -> Output:
    """The output with what the way to its answers says of them: three flags, and `rotation`."""
    found = {
        "continued": any(reply.continuations for reply in replies),
        "rotated": any(reply.rotation for reply in replies),
        "low_confidence": any(_is_unsure(reply.answer, effort) for reply in replies),
    }
    flags = (*output.flags, *(flag for flag, is_set in found.items() if is_set))
    turns = [reply.rotation for reply in replies]
    rotation = {"rotation": turns[0] if len(turns) == 1 else turns} if any(turns) else {}
    return replace(output, data={**output.data, **rotation}, flags=flags)


def turned(media: Media, views: tuple[MediumView, ...], degrees: int) -> Tiles | None:
    """The media with each image turned clockwise; None where they are not images whose tiles can be turned."""
    grids = [view.grid for view in views]
    if not isinstance(media, Tiles) or len(grids) != len(media.counts) or None in grids:
        return None
    pixels = media.pixels.copy()
    start = 0
    for count, grid in zip(media.counts, grids, strict=True):
        if grid is not None:
            pixels[start : start + count] = turn_tiles(media.pixels[start : start + count], grid, degrees)
        start += count
    return Tiles(pixels=pixels, counts=media.counts, digests=tile_digests(pixels, media.counts))


def joined(before: Completion, more: Completion) -> Completion:
    """An answer and its continuation (which holds its text already) as one completion."""
    parts = [(part.mean_logprob, part.completion_tokens) for part in (before, more)]
    total = sum(count for _, count in parts)
    known = [value * count for value, count in parts if value is not None]
    return replace(
        more,
        request_id=before.request_id,
        completion_tokens=total,
        mean_logprob=sum(known) / total if len(known) == len(parts) and total else None,
        first_token_seconds=before.first_token_seconds,
    )


def _is_unsure(answer: Completion, effort: Effort) -> bool:
    return effort.doubt is not None and answer.mean_logprob is not None and answer.mean_logprob < effort.doubt


def _worth(answer: Completion) -> tuple[bool, bool, float]:
    likely = -math.inf if answer.mean_logprob is None else answer.mean_logprob
    return not answer.degenerate, bool(answer.text), likely
