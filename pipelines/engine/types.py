"""The engine's port: what goes in, what comes out, and the `Engine` protocol. Free of torch: every room may import it.

An engine is shared by threads: `submit` never blocks on the model and answers with a `Handle`, whose future ends in a
`Completion` or in an `EngineError`. The same protocol is met by the local engine (`service.py`), the remote one
(`remote.py`) and the deterministic fake (`fake.py`); one conformance suite holds all three.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Uint8Tiles = NDArray[np.uint8]


class Accepts(enum.StrEnum):
    """What an engine eats: tiles cut by us, or the encoded images themselves (the server tiles)."""

    TILES = "tiles"
    IMAGES = "images"


class Priority(enum.IntEnum):
    """Scheduling class; a lower number goes first."""

    INTERACTIVE = 0
    NORMAL = 1
    BULK = 2


class FinishReason(enum.StrEnum):
    """Why an answer ended."""

    STOP = "stop"  # the end-of-turn token, or a stop string
    LENGTH = "length"  # max_new_tokens, or the end of the context
    DEGENERATE = "degenerate"  # a repeating n-gram; decoding was stopped early


@dataclass(frozen=True, kw_only=True)
class GenerationParams:
    """Per-request generation options; the defaults are the original code's."""

    max_new_tokens: int = 1024
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Pixels for an engine that accepts tiles.

    `pixels`: uint8 `[n, size, size, 3]`, RGB, not normalised. `counts`: tiles of each image, summing to n.
    `digests`: one content hash (hex) an image; it keys the prefix cache and the cache of visual embeddings.
    """

    pixels: Uint8Tiles
    counts: tuple[int, ...]
    digests: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class EncodedImage:
    """One page image or sampled frame for an engine that accepts images. `mime` such as `image/jpeg`."""

    mime: str
    data: bytes
    digest: str


@dataclass(frozen=True, kw_only=True)
class EncodedImages:
    """Images in order; `video` says that they are the sampled frames of one video."""

    images: tuple[EncodedImage, ...]
    video: bool = False


@dataclass(frozen=True, kw_only=True)
class AnswerPrefix:
    """The beginning of an answer that was cut off: its text, and its tokens where the engine told them.

    The tokens decide where there are any: text may be spelt by other tokens than those that were generated.
    """

    text: str
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EngineRequest:
    """One question, over the same media as its history.

    `question` and the user turns of `history` may hold `<image>` placeholders, one an image in order; where a request
    has pixels and no placeholder, one is prepended to the first turn (the original's rule). `system`: None is the
    model's own system message. `group` keys fairness (the job). `media_hash` is copied to the completion unread: it
    binds the answer to the medium. `token_salt` keeps prefix sharing inside one tenant.

    `prefix`: an answer to go on with, `max_new_tokens` further. The completion then holds the whole answer, as if it
    had never been cut; its counts and its log-probability are those of the new tokens, and only new text is streamed.
    An engine whose `EngineInfo.continues` is False refuses it (`BadRequest`).
    """

    request_id: str
    question: str
    history: tuple[tuple[str, str], ...] = ()
    media: Tiles | EncodedImages | None = None
    params: GenerationParams = field(default_factory=GenerationParams)
    system: str | None = None
    priority: Priority = Priority.NORMAL
    group: str = ""
    media_hash: str = ""
    token_salt: str = ""
    prefix: AnswerPrefix | None = None


@dataclass(frozen=True, kw_only=True)
class Completion:
    """An answer. Times in seconds.

    `mean_logprob`: of the chosen tokens, the final end-of-turn token included, under the model's own distribution
    (before penalty and temperature); None where the engine cannot tell.
    """

    request_id: str
    text: str
    finish_reason: FinishReason
    token_ids: tuple[int, ...]
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    tiles: int
    mean_logprob: float | None
    media_hash: str
    degenerate: bool = False
    tokens_saved: int = 0
    queue_seconds: float = 0.0
    first_token_seconds: float = 0.0
    total_seconds: float = 0.0
    device_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class EngineInfo:
    """What an engine says of itself; stored as provenance and shown by the worker registry."""

    model: str
    weights_hash: str
    accepts: Accepts
    slots: int
    context_length: int
    image_size: int
    tokens_per_tile: int
    device: str
    dtype: str
    attention: str
    trained: bool = True
    continues: bool = True
    """Whether it can go on with an answer that was cut off (`EngineRequest.prefix`)."""


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """A snapshot for metrics; counters only grow."""

    waiting: int = 0
    running: int = 0
    steps: int = 0
    generated_tokens: int = 0
    prefilled_tokens: int = 0
    cached_tokens: int = 0
    tiles: int = 0
    cached_tiles: int = 0
    preemptions: int = 0
    kv_pages_used: int = 0
    kv_pages_total: int = 0
    degenerate: int = 0
    tokens_saved: int = 0


OnText = Callable[[str], None]
"""Called on the engine's thread with each new piece of text; it must return at once and not raise."""


class Handle(Protocol):
    """A submitted request."""

    @property
    def request_id(self) -> str:
        """The id that was submitted."""

    @property
    def future(self) -> Future[Completion]:
        """Ends in a `Completion`, or raises an `EngineError` (`RequestCancelled` after `cancel`)."""

    def cancel(self) -> None:
        """Ask for the request to end at the next step; its pages are freed, others are not disturbed. Repeatable."""

    def stream(self) -> Iterator[str]:
        """Pieces of text in order, ending when the future ends; raises what the future raises. One consumer."""


class Engine(Protocol):
    """A model instance that answers requests from many threads."""

    @property
    def info(self) -> EngineInfo:
        """What runs here."""

    def submit(self, request: EngineRequest, *, on_text: OnText | None = None) -> Handle:
        """Queue a request. Raises an `EngineError` at once where the request can never be answered."""

    def stats(self) -> EngineStats:
        """A consistent snapshot."""

    def healthy(self) -> bool:
        """False once it cannot make progress (stalled, sticky device error, closed): its process should exit."""

    def close(self, *, timeout: float = 30.0) -> None:
        """Stop: unanswered requests end in `EngineStopped`. Repeatable."""
