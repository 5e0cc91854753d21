"""From an `EngineRequest` to a sequence, and from its tokens to a `Completion`."""

from __future__ import annotations

import secrets
import time
import zlib
from dataclasses import dataclass, replace

import numpy as np

from pipelines.engine.config import ModelConfig
from pipelines.engine.errors import BadRequest, PromptTooLong
from pipelines.engine.guard import EVERY, repeating
from pipelines.engine.handle import PendingHandle
from pipelines.engine.params import check_params
from pipelines.engine.prompt import Span, build_parts, encode
from pipelines.engine.sequence import Image, Sequence
from pipelines.engine.tokenizer import TextAssembler, Tokenizer
from pipelines.engine.types import AnswerPrefix, Completion, EngineRequest, FinishReason, GenerationParams, Tiles

# What a degenerate answer is tried again with: enough noise to leave a loop, little enough to stay on topic.
_RETRY_TEMPERATURE = 0.7
_RETRY_TOP_P = 0.9
_RETRY_PENALTY = 1.1


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What a request may need: tokens of the context and of the whole cache."""

    context: int
    cache: int


def prepare(
    request: EngineRequest, *, number: int, tokenizer: Tokenizer, config: ModelConfig, bounds: Bounds
) -> Sequence:
    """Check a request and return its sequence. Runs on the caller's thread and touches no device.

    Raises `BadRequest`, `EmptyPrompt` or `PromptTooLong`.
    """
    check_params(request.params)
    media = request.media
    if media is not None and not isinstance(media, Tiles):
        raise BadRequest("this engine takes tiles, not encoded images", param="media")
    counts = _check_tiles(media, config.vision.image_size) if media is not None else ()
    most = min(bounds.context, bounds.cache)
    visual = sum(counts) * config.tokens_per_tile
    if visual >= most:
        raise PromptTooLong(f"{sum(counts)} tiles are {visual} tokens, more than the {most} that fit", param="media")
    parts = build_parts(
        request.question,
        history=request.history,
        counts=counts,
        tokens_per_tile=config.tokens_per_tile,
        system=request.system,
    )
    prompt = encode(tokenizer, parts)
    given = _given(request.prefix, tokenizer)
    if len(prompt.ids) + len(given) >= most:
        known = len(prompt.ids) + len(given)
        raise PromptTooLong(f"the prompt has {known} tokens, more than the {most - 1} that fit")
    tokens = [*prompt.ids, *given]
    if not 0 <= min(tokens) <= max(tokens) < config.text.vocabulary:
        raise BadRequest("the prompt holds a token id outside of the model's vocabulary")
    seed = request.params.seed
    return Sequence(
        number=number,
        priority=request.priority,
        group=request.group,
        tokens=tokens,
        prompt_length=len(prompt.ids),
        given=len(given),
        images=_images(media, prompt.spans, salt=request.token_salt, number=number) if media is not None else (),
        params=request.params,
        seed=secrets.randbits(63) if seed is None else seed,
        limit=min(len(given) + request.params.max_new_tokens, most - len(prompt.ids)),
        salt=request.token_salt.encode(),
    )


def _given(prefix: AnswerPrefix | None, tokenizer: Tokenizer) -> tuple[int, ...]:
    if prefix is None:
        return ()
    if tokenizer.stop_token in prefix.token_ids:
        raise BadRequest("an answer that has ended cannot be gone on with", param="prefix")
    return prefix.token_ids or tuple(tokenizer.encode([prefix.text]))


def _check_tiles(media: Tiles, size: int) -> tuple[int, ...]:
    pixels = media.pixels
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (size, size, 3):
        raise BadRequest(f"tiles must be uint8 [n, {size}, {size}, 3], got {pixels.dtype} {list(pixels.shape)}")
    if not media.counts or any(count < 1 for count in media.counts):
        raise BadRequest("every image needs at least one tile", param="media")
    if sum(media.counts) != len(pixels) or len(media.digests) != len(media.counts):
        raise BadRequest("the tile counts do not add up to the tiles, or a digest is missing", param="media")
    return media.counts


def _images(media: Tiles, spans: tuple[Span, ...], *, salt: str, number: int) -> tuple[Image, ...]:
    images = []
    at = 0
    for count, digest, span in zip(media.counts, media.digests, spans, strict=True):
        pixels = np.ascontiguousarray(media.pixels[at : at + count])
        at += count
        # The digest names the content. The checksum of the pixels stands beside it, so that one medium cut in two ways
        # (or a caller's mistake) can never show one request the tiles of another. Without a digest nothing is shared.
        name = digest or f"request-{number}-{at}"
        images.append(Image(key=f"{salt}/{name}/{count}/{zlib.crc32(pixels.data):08x}", span=span, pixels=pixels))
    return tuple(images)


class ActiveRequest:
    """One request between submit and completion. The engine's thread alone changes it."""

    def __init__(self, request: EngineRequest, handle: PendingHandle, sequence: Sequence, tokenizer: Tokenizer) -> None:
        self.request = request
        self.handle = handle
        self.sequence = sequence
        self._tokenizer = tokenizer
        self._assembler = self._assemble()
        self._logprobs = 0.0
        self._sampled = 0
        self._saved = 0
        self._retried = False
        self._submitted = time.monotonic()
        self._admitted: float | None = None
        self._first: float | None = None
        self.device_seconds = 0.0

    def _assemble(self) -> TextAssembler:
        """Return an assembler that has the given tokens behind it: a character cut in two at the seam is made whole."""
        sequence = self.sequence
        assembler = TextAssembler(self._tokenizer, self.request.params.stop)
        assembler.push(sequence.tokens[sequence.prompt_length : sequence.prompt_length + sequence.given])
        return assembler

    @property
    def streaming(self) -> bool:
        """Whether somebody has seen the text so far."""
        return self.handle.streaming

    def admitted(self, when: float) -> None:
        """Note when the first step with this request began."""
        if self._admitted is None:
            self._admitted = when

    def token(self, token: int, logprob: float, *, guard: bool) -> FinishReason | None:
        """Take a token; returns why the answer is finished, or None."""
        if self._first is None:
            self._first = time.monotonic()
        self._logprobs += logprob
        self._sampled += 1
        sequence = self.sequence
        if token == self._tokenizer.stop_token:
            sequence.tokens.pop()
            return FinishReason.STOP
        self.handle.emit(self._assembler.push((token,)))
        if self._assembler.stopped:
            return FinishReason.STOP
        if sequence.generated >= sequence.limit:
            return FinishReason.LENGTH
        if guard and sequence.generated % EVERY == 0 and repeating(sequence.tokens[sequence.prompt_length :]):
            self._saved += sequence.limit - sequence.generated
            return FinishReason.DEGENERATE
        return None

    def retry(self, number: int) -> Sequence | None:
        """Return the sequence of a second try of a degenerate answer; None after one, or where text was sent."""
        if self._retried or self.streaming:
            return None
        self._retried = True
        old = self.sequence
        params: GenerationParams = replace(
            old.params,
            do_sample=True,
            temperature=max(old.params.temperature, _RETRY_TEMPERATURE) if old.params.do_sample else _RETRY_TEMPERATURE,
            top_p=min(old.params.top_p, _RETRY_TOP_P),
            repetition_penalty=max(old.params.repetition_penalty, _RETRY_PENALTY),
        )
        self.sequence = Sequence(
            number=number,
            priority=old.priority,
            group=old.group,
            tokens=old.tokens[: old.prompt_length + old.given],
            prompt_length=old.prompt_length,
            given=old.given,
            images=old.images,
            params=params,
            # Without a seed of its own a greedy request is still reproducible: its second try is seeded by its prompt.
            seed=old.seed
            if old.params.seed is not None
            else zlib.crc32(np.asarray(old.tokens[: old.prompt_length]).data),
            limit=old.limit,
            salt=old.salt,
        )
        self.sequence.cached_tokens = old.cached_tokens
        self.sequence.admissions = 1
        self._assembler = self._assemble()
        self._logprobs = 0.0
        self._sampled = 0
        return self.sequence

    def completion(self, reason: FinishReason) -> Completion:
        """Return the answer and send its last piece of text."""
        sequence = self.sequence
        self.handle.emit(self._assembler.flush())
        now = time.monotonic()
        first = self._first or now
        return Completion(
            request_id=self.request.request_id,
            text=self._assembler.text,
            finish_reason=reason,
            token_ids=tuple(sequence.tokens[sequence.prompt_length :]),
            prompt_tokens=sequence.prompt_length + sequence.given,
            cached_tokens=sequence.cached_tokens,
            completion_tokens=sequence.generated - sequence.given,
            tiles=sum(image.count for image in sequence.images),
            mean_logprob=self._logprobs / self._sampled if self._sampled else None,
            media_hash=self.request.media_hash,
            degenerate=reason is FinishReason.DEGENERATE,
            tokens_saved=self._saved,
            queue_seconds=(self._admitted or now) - self._submitted,
            first_token_seconds=first - self._submitted,
            total_seconds=now - self._submitted,
            device_seconds=self.device_seconds,
        )
