"""Bookkeeping of the paged key/value cache and of the visual embeddings. Host only: the tensors are the runner's.

A full page is found again by the hash of its content and of everything before it. Pages that nobody uses stay findable
until they are needed, least recently used first. Page 0 is scrap: padded rows of a CUDA graph write there.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence


class PagePool:
    """Pages with reference counts and a content index. `total` counts usable pages (without the scrap page)."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = list(range(total, 0, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._users = [0] * (total + 1)
        self._page_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}

    @property
    def available(self) -> int:
        """Pages that can be allocated now."""
        return len(self._free) + len(self._idle)

    @property
    def used(self) -> int:
        """Pages that a sequence holds."""
        return self.total - self.available

    def match(self, hashes: Sequence[bytes]) -> list[int]:
        """Return the pages of the longest known prefix, without taking them."""
        pages = []
        for key in hashes:
            page = self._page_of.get(key)
            if page is None:
                break
            pages.append(page)
        return pages

    def idle_among(self, pages: Iterable[int]) -> int:
        """Return how many of `pages` are counted in `available`."""
        return sum(self._users[page] == 0 for page in pages)

    def alone(self, pages: Iterable[int]) -> list[int]:
        """Return those of `pages` that one sequence holds."""
        return [page for page in pages if self._users[page] == 1]

    def share(self, pages: Iterable[int]) -> None:
        """Take pages that `match` found."""
        for page in pages:
            if self._users[page] == 0:
                del self._idle[page]
            self._users[page] += 1

    def allocate(self, count: int) -> list[int]:
        """Take `count` pages of unknown content; the caller has looked at `available`."""
        pages = []
        for _ in range(count):
            if self._free:
                page = self._free.pop()
            else:
                page, _ = self._idle.popitem(last=False)
                del self._page_of[self._hash_of.pop(page)]
            self._users[page] = 1
            pages.append(page)
        return pages

    def commit(self, page: int, key: bytes) -> None:
        """Make a full page findable; the first page of a content wins."""
        if key not in self._page_of and page not in self._hash_of:
            self._page_of[key] = page
            self._hash_of[page] = key

    def release(self, pages: Sequence[int]) -> None:
        """Give pages back. The end of a prefix becomes evictable before its beginning, which more prompts share."""
        for page in reversed(pages):
            self._users[page] -= 1
            if self._users[page] == 0:
                if page in self._hash_of:
                    self._idle[page] = None
                else:
                    self._free.append(page)

    def forget(self, pages: Iterable[int]) -> None:
        """Make pages unfindable (their content is bad), before they are released."""
        for page in pages:
            key = self._hash_of.pop(page, None)
            if key is not None:
                del self._page_of[key]


class EmbeddingLedger:
    """Which images have visual embeddings on the device: an LRU bounded in tiles; pinned images stay.

    An image is unknown, encoding (some tiles launched) or ready. Pinned images may pass the bound together: they are
    those of the admitted sequences.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._ready: OrderedDict[str, int] = OrderedDict()
        self._encoding: dict[str, int] = {}
        self._pins: Counter[str] = Counter()
        self._tiles = 0
        self.hits = 0

    def ready(self, key: str) -> bool:
        """Whether the embeddings of all tiles can be read."""
        return key in self._ready

    def launched(self, key: str) -> int:
        """Tiles of an image whose encoding has been launched."""
        return self._encoding.get(key, 0)

    def launch(self, key: str, tiles: int) -> None:
        """Note that so many more tiles are being encoded."""
        self._encoding[key] = self._encoding.get(key, 0) + tiles

    def finish(self, key: str, tiles: int) -> None:
        """Note that an image is complete."""
        if self._encoding.pop(key, None) is not None:
            self._ready[key] = tiles
            self._tiles += tiles

    def drop(self, key: str) -> None:
        """Forget an image whose encoding failed."""
        self._encoding.pop(key, None)

    def pin(self, key: str) -> None:
        """Keep an image until `unpin`. Tiles that need no encoding are counted in `hits`."""
        self._pins[key] += 1
        if key in self._ready:
            self._ready.move_to_end(key)
            self.hits += self._ready[key]

    def unpin(self, key: str) -> None:
        """Undo one `pin`."""
        self._pins[key] -= 1
        if self._pins[key] <= 0:
            del self._pins[key]

    def evict(self) -> tuple[str, ...]:
        """Return the images to drop: half-encoded ones that nobody wants, and the oldest over the bound."""
        gone = [key for key in self._encoding if key not in self._pins]
        for key in gone:
            del self._encoding[key]
        if self._tiles > self.capacity:
            for key in [key for key in self._ready if key not in self._pins]:
                self._tiles -= self._ready.pop(key)
                gone.append(key)
                if self._tiles <= self.capacity:
                    break
        return tuple(gone)
