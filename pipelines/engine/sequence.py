"""A request inside the engine: its tokens, its pages and how far it is computed. Plain data, no decisions."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np

from pipelines.engine.prompt import Span
from pipelines.engine.types import GenerationParams, Priority, Uint8Tiles


@dataclass(frozen=True, kw_only=True)
class Image:
    """One image of a request. `key` names its content; `pixels` is uint8 `[count, size, size, 3]`."""

    key: str
    span: Span
    pixels: Uint8Tiles

    @property
    def count(self) -> int:
        """Tiles."""
        return int(self.pixels.shape[0])


@dataclass(kw_only=True, eq=False, slots=True)
class Sequence:
    """One request on its way through the scheduler.

    `tokens` holds the prompt and the generated tokens that the host knows; `pending` counts tokens that are sampled on
    the device but not read yet. `computed` tokens have their keys and values in `pages` (or a launched step puts them
    there). `limit` is the largest number of generated tokens. The first `given` of them were not generated here but
    came with the request, which goes on with an answer: they are computed like those of a sequence that was sent back.
    """

    number: int
    priority: Priority
    group: str
    tokens: list[int]
    prompt_length: int
    images: tuple[Image, ...]
    params: GenerationParams
    seed: int
    limit: int
    salt: bytes
    given: int = 0
    pending: int = 0
    computed: int = 0
    pages: list[int] = field(default_factory=list)
    committed: int = 0
    slot: int = -1
    token_on_device: bool = False
    solo: bool = False
    done: bool = False
    cached_tokens: int = 0
    admissions: int = 0
    pinned: set[str] = field(default_factory=set)
    _hashes: list[bytes] = field(default_factory=list)

    @property
    def rank(self) -> tuple[int, int]:
        """Order of service: priority, then arrival."""
        return (self.priority, self.number)

    @property
    def total(self) -> int:
        """Tokens, those that the host has not read yet included."""
        return len(self.tokens) + self.pending

    @property
    def generated(self) -> int:
        """Generated tokens that the host knows, the given ones included."""
        return len(self.tokens) - self.prompt_length

    def page_hashes(self, page_size: int) -> list[bytes]:
        """Return one content hash for each full page of known tokens.

        A hash covers everything before it: the salt, the token ids, and for visual tokens the content of the image and
        the place inside it. Equal hashes therefore mean equal keys and values.
        """
        known = self._hashes
        while (len(known) + 1) * page_size <= len(self.tokens):
            start = len(known) * page_size
            stop = start + page_size
            digest = hashlib.blake2b(known[-1] if known else self.salt, digest_size=16)
            digest.update(np.asarray(self.tokens[start:stop], dtype=np.int64).tobytes())
            for image in self.images:
                if image.span.start < stop and start < image.span.end:
                    digest.update(f"{image.key}@{start - image.span.start};".encode())
            known.append(digest.digest())
        return known
