"""Carries out a plan: packs the rows, runs the model, samples, and gives back a ticket to read later.

What a decoding sequence sampled last stays on the device, in its slot, so that the next step can be launched before the
host has read it: in the steady state the host never waits for the step it has just launched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from pipelines.engine.attention import Backend, PagedCache, PagedStep
from pipelines.engine.config import ModelConfig
from pipelines.engine.graphs import DecodeGraphs, DecodeInputs
from pipelines.engine.plan import StepPlan
from pipelines.engine.sampling import sample
from pipelines.engine.vision import VisionRunner


@dataclass(kw_only=True)
class Ticket:
    """A launched step: int64 tokens and float32 log-probabilities on their way to the host."""

    tokens: torch.Tensor
    logprobs: torch.Tensor
    event: torch.cuda.Event | None

    def read(self) -> tuple[list[int], list[float]]:
        """Wait for the step and return its tokens and log-probabilities, in the order of the plan's samples."""
        if self.event is not None:
            self.event.synchronize()
        return self.tokens.tolist(), self.logprobs.tolist()


class DeviceLost(Exception):
    """The device, or a rank of the group, reported an error that it does not recover from."""


class Group(Protocol):
    """What a runner needs of the other ranks of a tensor-parallel engine; see `parallel.Peers`."""

    world: int

    def agree(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return rank 0's tokens."""

    def spread(self, embed: Callable[[torch.Tensor], torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
        """Embed tiles, each rank its share."""


class Runner:
    """The model, its cache pages and its slots on one device (or the first of several). One thread only."""

    def __init__(
        self,
        model: Any,
        config: ModelConfig,
        *,
        backend: Backend,
        device: torch.device,
        dtype: torch.dtype,
        pages: int,
        page_size: int,
        slots: int,
        graphs: bool = False,
        group: Group | None = None,
        layer_device: Callable[[int], torch.device] | None = None,
    ) -> None:
        self.config = config
        self.device = device
        self._model = model
        self._text = model.model.language_model
        self._backend = backend
        self._group = group
        shape = (pages + 1, page_size, config.text.kv_heads // (group.world if group else 1), config.text.head_dim)
        self._layers = []
        for number in range(config.text.layers):
            home = layer_device(number) if layer_device else device
            keys, values = (torch.zeros(shape, dtype=dtype, device=home) for _ in range(2))
            self._layers.append(PagedCache(keys=keys, values=values))
        self._last = torch.zeros(slots, dtype=torch.int64, device=device)
        self._seen = torch.zeros(slots, config.text.vocabulary, dtype=torch.bool, device=device)
        self.vision = VisionRunner(
            model,
            device=device,
            dtype=dtype,
            tokens=config.tokens_per_tile,
            hidden=config.text.hidden,
            spread=group.spread if group else None,
        )
        self._graphs: DecodeGraphs | None = None
        if graphs and backend.graphable and device.type == "cuda":
            width = min(pages, -(-config.text.max_positions // page_size))
            self._graphs = DecodeGraphs(self.decode, slots=slots, pages=width, device=device)
            with torch.inference_mode():
                self._graphs.capture()

    @property
    def attention(self) -> str:
        """The name of the attention back end."""
        return self._backend.name

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> Ticket:
        """Start a step. On a CPU it is complete on return."""
        self.vision.drop(plan.drop)
        if plan.scrub:
            pages = torch.tensor(plan.scrub, device=self.device)
            for layer in self._layers:
                layer.keys[pages.to(layer.keys.device)] = 0
                layer.values[pages.to(layer.keys.device)] = 0
        self.vision.launch(plan.encode)
        for slot, generated in plan.reset:
            self._seen[slot] = False
            self._seen[slot, torch.tensor([self.config.bos, *generated]).to(self.device)] = True
        if not plan.rows:
            empty = torch.empty(0)
            return Ticket(tokens=empty.long(), logprobs=empty, event=None)
        if not len(plan.sample):
            self._forward(plan)
            empty = torch.empty(0)
            return Ticket(tokens=empty.long(), logprobs=empty, event=None)
        if self._graphs is not None and plan.rows == plan.decodes:
            return self._sample(plan, self._graphs.run(plan))
        return self._sample(plan, self._model.lm_head(self._forward(plan)))

    @torch.inference_mode()
    def decode(self, inputs: DecodeInputs) -> torch.Tensor:
        """Logits of a step of decoding rows alone, from device tensors: nothing is the host's, it can be captured."""
        rows = self._text.embed_tokens(self._last.index_select(0, inputs.slots))
        state = self._backend.decode_state(inputs.tables, inputs.lengths)
        step = PagedStep(backend=self._backend, state=state, write=inputs.write, layers=self._layers)
        hidden = self._text(
            inputs_embeds=rows[None], position_ids=inputs.positions[None], use_cache=False, paged=step
        ).last_hidden_state[0]
        logits: torch.Tensor = self._model.lm_head(hidden)
        return logits

    @torch.inference_mode()
    def logits(self, plan: StepPlan) -> torch.Tensor:
        """Run a step for its logits alone: `[samples, vocabulary]`."""
        logits: torch.Tensor = self._model.lm_head(self._forward(plan))
        return logits

    def _forward(self, plan: StepPlan) -> torch.Tensor:
        """Return the last hidden states of the sampled rows, `[samples, hidden]`."""
        tokens = self._to_device(plan.tokens)
        if plan.decodes:
            tokens[: plan.decodes] = self._last.index_select(0, self._to_device(plan.decode_slots))
        rows = self._text.embed_tokens(tokens)
        self.vision.fill(rows, plan.visual)
        step = PagedStep(
            backend=self._backend,
            state=self._backend.prepare(plan, self.device),
            write=self._to_device(plan.write),
            layers=self._layers,
            remake=lambda device: self._backend.prepare(plan, device),
        )
        output = self._text(
            inputs_embeds=rows[None], position_ids=self._to_device(plan.positions)[None], use_cache=False, paged=step
        ).last_hidden_state[0]
        if len(plan.sample) == plan.rows:
            return output  # type: ignore[no-any-return]
        return output.index_select(0, self._to_device(plan.sample))  # type: ignore[no-any-return]

    def _sample(self, plan: StepPlan, logits: torch.Tensor) -> Ticket:
        slots = self._to_device(plan.sample_slots)
        penalised = any(row.penalty != 1.0 for row in plan.sampling)
        seen = self._seen.index_select(0, slots) if penalised else None
        tokens, logprobs = sample(logits, plan.sampling, seen)
        if self._group is not None:
            tokens = self._group.agree(tokens)
        self._last.index_copy_(0, slots, tokens)
        if penalised:
            self._seen[slots, tokens] = True
        if self.device.type == "cpu":
            return Ticket(tokens=tokens, logprobs=logprobs, event=None)
        host = tokens.to("cpu", non_blocking=True), logprobs.to("cpu", non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return Ticket(tokens=host[0], logprobs=host[1], event=event)

    def _to_device(self, values: Any) -> torch.Tensor:
        tensor = torch.from_numpy(values)
        return tensor.clone() if self.device.type == "cpu" else tensor.pin_memory().to(self.device, non_blocking=True)
