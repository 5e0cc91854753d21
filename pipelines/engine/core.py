"""Scheduler and runner in lockstep: sequences in, tokens and failures out. No text, no threads.

A step that raises is blamed on the sequences that began in it (prefill and tiles) or, where there are none, on the
decoding ones. One suspect fails with its error; several are sent back and tried again one at a time, so that a bad
request fails alone. Errors of the device itself are not blamed on anybody: they end the engine.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from dataclasses import dataclass

import torch

from pipelines.engine.errors import EngineOutOfMemory, NonFiniteLogits
from pipelines.engine.plan import StepPlan
from pipelines.engine.runner import DeviceLost, Runner, Ticket
from pipelines.engine.scheduler import Scheduler, Step
from pipelines.engine.sequence import Sequence
from pipelines.jobs.errors import EngineError

_log = logging.getLogger(__name__)

_STRIKES = 3


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """A token of a sequence; `logprob` under the model's own distribution."""

    sequence: Sequence
    token: int
    logprob: float


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A sequence that was taken out with an error."""

    sequence: Sequence
    error: EngineError


Event = Sampled | Failed


class EngineCore:
    """One thread only. `lookahead`: steps that may be in flight while the next is planned (1 on a GPU, 0 on a CPU)."""

    def __init__(self, scheduler: Scheduler, runner: Runner, *, lookahead: int) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self._lookahead = lookahead
        self._flying: deque[tuple[Step, Ticket]] = deque()
        self._strikes: dict[Sequence, int] = {}
        self.steps = 0
        self.prefilled = 0
        self.generated = 0
        self.tiles = 0
        self.last: Step | None = None

    @property
    def busy(self) -> bool:
        """Whether anything waits, runs or flies."""
        return bool(self._flying or self.scheduler.running or len(self.scheduler.waiting))

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self.scheduler.add(sequence)

    def remove(self, sequence: Sequence, *, bad: bool = False) -> None:
        """Take a sequence out; what is in flight for it is ignored when it arrives."""
        self._strikes.pop(sequence, None)
        self.scheduler.remove(sequence, bad=bad)

    def preload(self, key: str, tokens: torch.Tensor) -> None:
        """Make the visual tokens of an image known, `[tiles, tokens a tile, hidden]`, as if they had been encoded."""
        self.runner.vision.put(key, tokens)
        self.scheduler.ledger.launch(key, len(tokens))
        self.scheduler.ledger.finish(key, len(tokens))

    def step(self) -> list[Event]:
        """Launch what can be launched, and read what must be read. `DeviceLost` ends the engine."""
        for key, tiles in self.runner.vision.finished(wait=False):
            self.scheduler.ledger.finish(key, tiles)
        step = self.scheduler.schedule()
        events: list[Event] = []
        if step is not None:
            try:
                ticket = self.runner.launch(step.plan)
            except DeviceLost:
                raise
            except Exception as error:  # noqa: BLE001 - whatever one request causes may not reach the others
                return self._drain() + self._blame(step, error)
            self.scheduler.launched(step)
            self._flying.append((step, ticket))
            self._count(step.plan)
        self.last = step
        if self._flying and (step is None or len(self._flying) > self._lookahead):
            events += self._read(*self._flying.popleft())
        elif step is None and self.runner.vision.busy:
            for key, tiles in self.runner.vision.finished(wait=True):
                self.scheduler.ledger.finish(key, tiles)
        return events

    def _count(self, plan: StepPlan) -> None:
        self.steps += 1
        self.prefilled += plan.rows - plan.decodes
        self.generated += len(plan.sample)
        self.tiles += sum(len(item.pixels) for item in plan.encode)

    def _read(self, step: Step, ticket: Ticket) -> list[Event]:
        try:
            tokens, logprobs = ticket.read()
        except RuntimeError as error:
            raise DeviceLost(str(error)) from error
        events: list[Event] = []
        for sequence, token, logprob in zip(step.sampled, tokens, logprobs, strict=True):
            if sequence.done:
                continue
            if not math.isfinite(logprob):
                self.remove(sequence, bad=True)
                bad = NonFiniteLogits("the model computed NaN or infinity for this request")
                events.append(Failed(sequence=sequence, error=bad))
                continue
            self.scheduler.token(sequence, token)
            events.append(Sampled(sequence=sequence, token=token, logprob=logprob))
        return events

    def _drain(self) -> list[Event]:
        events: list[Event] = []
        while self._flying:
            events += self._read(*self._flying.popleft())
        return events

    def _blame(self, step: Step, error: Exception) -> list[Event]:
        if _sticky(error):
            raise DeviceLost(str(error)) from error
        _log.warning("engine.step_failed", exc_info=error)
        for item in step.plan.encode:
            self.scheduler.ledger.drop(item.key)
            self.runner.vision.drop((item.key,))
        if isinstance(error, torch.OutOfMemoryError) and self.runner.device.type == "cuda":
            torch.cuda.empty_cache()
        beginning = {sequence: None for sequence, _ in step.prefilling}
        beginning |= {sequence: None for sequence, _, _ in step.encoding}
        suspects = [each for each in (beginning or dict.fromkeys(step.decoding)) if not each.done]
        events: list[Event] = []
        for sequence in suspects:
            self._strikes[sequence] = self._strikes.get(sequence, 0) + 1
            if len(suspects) == 1 or self._strikes[sequence] >= _STRIKES:
                self.remove(sequence, bad=True)
                events.append(Failed(sequence=sequence, error=_error_of(error)))
            else:
                sequence.solo = True
                self.scheduler.preempt(sequence)
        return events


def _sticky(error: Exception) -> bool:
    accelerator = getattr(torch, "AcceleratorError", None)
    if accelerator is not None and isinstance(error, accelerator):
        return True
    return (
        isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError) and "CUDA error" in str(error)
    )


def _error_of(error: Exception) -> EngineError:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        mapped: EngineError = EngineOutOfMemory("the device ran out of memory on this request")
    else:
        mapped = EngineError("the engine could not compute this request")
    mapped.__cause__ = error
    return mapped
