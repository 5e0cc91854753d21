"""Paged attention behind transformers' own modules: one registered function, and the back ends it may call.

The language model runs on packed rows (`[1, rows, ...]`, sequences end to end). Each layer writes the new keys and
values into the pages and hands the queries to the back end that was chosen at start. The step's description travels
through the modules as a keyword argument (`paged`), so no state is global.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from transformers import AttentionInterface

from pipelines.engine.plan import StepPlan

NAME = "batchsight_paged"


@dataclass(frozen=True, kw_only=True)
class PagedCache:
    """Keys and values of one layer, each `[pages, page_size, kv_heads, head_dim]`."""

    keys: torch.Tensor
    values: torch.Tensor


class Backend(Protocol):
    """Computes attention of packed queries over pages. One instance an engine.

    `graphable`: decoding needs nothing from the host, so that a CUDA graph may hold it; see `decode_state`.
    """

    name: str
    graphable: bool
    page_size: int

    def prepare(self, plan: StepPlan, device: torch.device) -> Any:
        """Turn a plan into what `attend` needs on every layer of this step."""

    def decode_state(self, tables: torch.Tensor, lengths: torch.Tensor) -> Any:
        """Return the state of a step of decoding rows alone, from int32 device tensors `[rows, pages]` and `[rows]`."""

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cache: PagedCache, state: Any, scale: float
    ) -> torch.Tensor:
        """Return `[rows, heads, head_dim]`; `query` likewise, `key` and `value` (in the cache by now) with kv_heads."""


@dataclass(kw_only=True, slots=True)
class PagedStep:
    """One step as the attention layers see it. `write`: int64 `[rows]`, the cache place of each row.

    `remake` makes the state for another device, where the layers are spread over several.
    """

    backend: Backend
    state: Any
    write: torch.Tensor
    layers: list[PagedCache]
    remake: Callable[[torch.device], Any] | None = None
    _elsewhere: dict[torch.device, PagedStep] = field(default_factory=dict)

    def on(self, device: torch.device) -> PagedStep:
        """Return this step for the layers of a device."""
        if device == self.write.device or self.remake is None:
            return self
        if device not in self._elsewhere:
            self._elsewhere[device] = PagedStep(
                backend=self.backend,
                state=self.remake(device),
                write=self.write.to(device, non_blocking=True),
                layers=self.layers,
            )
        return self._elsewhere[device]


def paged_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001 - the interface's signature
    scaling: float,
    *,
    paged: PagedStep,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Write the step's keys and values, attend. Shapes as transformers calls it: `[1, heads, rows, head_dim]`."""
    cache = paged.layers[module.layer_idx]
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    cache.keys.flatten(0, 1).index_copy_(0, paged.write, key)
    cache.values.flatten(0, 1).index_copy_(0, paged.write, value)
    return paged.backend.attend(query, key, value, cache, paged.state, scaling)[None], None


# No mask function is registered under this name: transformers then builds no mask at all. One that returns None would
# still make it look for packed sequences in the positions, which waits for the device on every step.
AttentionInterface.register(NAME, paged_attention)
