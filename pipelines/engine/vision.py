"""Tiles to visual tokens: uint8 to the device, normalised there, tower and projector, kept by content.

Tiles of many requests share a batch. On CUDA the tower runs on a stream of its own beside the decode steps; an image
can be used once its event has passed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from pipelines.engine.plan import Encode, Visual

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class VisionRunner:
    """The vision tower and the embeddings it has computed. One thread only."""

    def __init__(
        self,
        model: Any,
        *,
        device: torch.device,
        dtype: torch.dtype,
        tokens: int,
        hidden: int,
        spread: Callable[[Callable[[torch.Tensor], torch.Tensor], torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self._model = model
        self._spread = spread
        self._device = device
        self._dtype = dtype
        self._tokens = tokens
        self._hidden = hidden
        # (x / 255 - mean) / std, written as x * scale + shift
        self._scale = torch.tensor([1 / (255 * std) for std in STD], dtype=torch.float64).to(device, torch.float32)
        shift = [-mean / std for mean, std in zip(MEAN, STD, strict=True)]
        self._shift = torch.tensor(shift, dtype=torch.float64).to(device, torch.float32)
        self._embeddings: dict[str, torch.Tensor] = {}
        self._missing: dict[str, int] = {}
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._flying: deque[tuple[torch.cuda.Event | None, list[tuple[str, int]], Any]] = deque()

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 `[n, size, size, 3]` to the model's dtype `[n, 3, size, size]` by the ImageNet mean and deviation."""
        wide = torch.float64 if self._dtype == torch.float64 else torch.float32
        scaled = torch.addcmul(self._shift.to(wide), pixels.to(wide), self._scale.to(wide))
        return scaled.permute(0, 3, 1, 2).to(self._dtype)

    def tower(self, normalised: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`[n, 3, size, size]` to the tower's last hidden states (CLS first) and the visual tokens."""
        output = self._model.get_image_features(pixel_values=normalised)
        return output.last_hidden_state, output.pooler_output

    def _embed(self, pixels: torch.Tensor) -> torch.Tensor:
        def embed(part: torch.Tensor) -> torch.Tensor:
            return self.tower(self.normalise(part))[1]

        return embed(pixels) if self._spread is None else self._spread(embed, pixels)

    def join(self) -> None:
        """Let the device's main stream wait for the tiles launched so far; the host does not wait."""
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def put(self, key: str, tokens: torch.Tensor) -> None:
        """Keep visual tokens `[tiles, tokens, hidden]` that were computed elsewhere."""
        self._embeddings[key] = tokens
        self._missing[key] = 0

    def launch(self, items: Sequence[Encode]) -> None:
        """Encode the tiles of a step as one batch."""
        if not items:
            return
        host = torch.from_numpy(np.concatenate([item.pixels for item in items]))
        if self._stream is None:
            self._store(items, self._embed(host.to(self._device)))
            event = None
        else:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._stream):
                host = host.pin_memory()
                pixels = host.to(self._device, non_blocking=True)
                self._store(items, self._embed(pixels))
            event = self._stream.record_event()
        complete = [(item.key, item.count) for item in items if self._missing[item.key] == 0]
        self._flying.append((event, complete, host))

    def finished(self, *, wait: bool) -> list[tuple[str, int]]:
        """Return (key, tiles) of the images that became complete; with `wait`, wait for the oldest batch."""
        done: list[tuple[str, int]] = []
        while self._flying:
            event, complete, _ = self._flying[0]
            if event is not None and not event.query():  # type: ignore[no-untyped-call]
                if not wait or done:
                    break
                event.synchronize()
            self._flying.popleft()
            done += complete
        return done

    @property
    def busy(self) -> bool:
        """Whether a batch has not been reported by `finished`."""
        return bool(self._flying)

    def fill(self, rows: torch.Tensor, visual: Sequence[Visual]) -> None:
        """Write visual tokens over the rows `[rows, hidden]` of a step."""
        for part in visual:
            tokens = self._embeddings[part.key].view(-1, self._hidden)
            if self._stream is not None:
                # Its memory belongs to the tower's stream, which may reuse it once it is dropped.
                tokens.record_stream(torch.cuda.current_stream(self._device))
            rows[part.row : part.row + part.length] = tokens[part.offset : part.offset + part.length]

    def drop(self, keys: Sequence[str]) -> None:
        """Forget images."""
        for key in keys:
            self._embeddings.pop(key, None)
            self._missing.pop(key, None)
            for _, complete, _ in self._flying:
                complete[:] = [item for item in complete if item[0] != key]

    def _store(self, items: Sequence[Encode], embeddings: torch.Tensor) -> None:
        at = 0
        for item in items:
            size = len(item.pixels)
            part = embeddings[at : at + size]
            at += size
            if size == item.count:
                self._embeddings[item.key] = part
                self._missing[item.key] = 0
                continue
            if item.key not in self._embeddings:
                self._embeddings[item.key] = part.new_empty(item.count, self._tokens, self._hidden)
                self._missing[item.key] = item.count
            self._embeddings[item.key][item.first : item.first + size] = part
            self._missing[item.key] -= size
