"""Engine cores of any size over one model, driven step by step without threads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines.engine.backends import SdpaBackend
from pipelines.engine.checkpoint import open_checkpoint
from pipelines.engine.config import ModelConfig
from pipelines.engine.core import EngineCore, Failed
from pipelines.engine.model import build_model
from pipelines.engine.request import Bounds, prepare
from pipelines.engine.runner import Runner
from pipelines.engine.scheduler import Limits, Scheduler
from pipelines.engine.sequence import Sequence
from pipelines.engine.service import LocalEngine
from pipelines.engine.tokenizer import Tokenizer, read_tokenizer
from pipelines.engine.types import Accepts, EngineInfo, EngineRequest


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A loaded model from which cores of any size are made."""

    config: ModelConfig
    tokenizer: Tokenizer
    model: Any
    dtype: torch.dtype

    def core(self, limits: Limits, *, runner: type[Runner] = Runner, lookahead: int = 0) -> EngineCore:
        made = runner(
            self.model,
            self.config,
            backend=SdpaBackend(limits.page_size),
            device=torch.device("cpu"),
            dtype=self.dtype,
            pages=limits.pages,
            page_size=limits.page_size,
            slots=limits.slots,
        )
        return EngineCore(Scheduler(limits), made, lookahead=lookahead)

    def sequence(self, request: EngineRequest, number: int, limits: Limits) -> Sequence:
        return prepare(
            request,
            number=number,
            tokenizer=self.tokenizer,
            config=self.config,
            bounds=Bounds(context=limits.context, cache=limits.pages * limits.page_size),
        )

    def engine(self, core: EngineCore, **options: Any) -> LocalEngine:
        info = EngineInfo(
            model="bench",
            weights_hash="0",
            accepts=Accepts.TILES,
            slots=core.scheduler.limits.slots,
            context_length=core.scheduler.limits.context,
            image_size=self.config.vision.image_size,
            tokens_per_tile=self.config.tokens_per_tile,
            device="cpu",
            dtype="float64",
            attention="sdpa",
        )
        return LocalEngine(core, info=info, config=self.config, tokenizer=self.tokenizer, **options)


def load_bench(folder: Path, dtype: torch.dtype = torch.float64, *, edit: Any = None) -> Bench:
    checkpoint = open_checkpoint(folder)
    tokenizer = read_tokenizer(folder)
    cpu = torch.device("cpu")
    model = build_model(
        checkpoint.config,
        checkpoint.tensors(),
        dtype=dtype,
        place=lambda _: cpu,
        image_token=tokenizer.image_token,
        edit=edit,
    )
    return Bench(config=checkpoint.config, tokenizer=tokenizer, model=model, dtype=dtype)


def run(core: EngineCore, sequences: Iterable[Sequence], *, stop: int = -1) -> dict[Sequence, list[int] | Exception]:
    """Answer all sequences; a failed one has its error for an answer."""
    answers: dict[Sequence, list[int] | Exception] = {}
    for sequence in sequences:
        core.add(sequence)
    while core.busy:
        take(core, answers, stop=stop)
    return answers


def take(core: EngineCore, answers: dict[Sequence, list[int] | Exception], *, stop: int = -1) -> None:
    """One step, with the ends of answers."""
    for event in core.step():
        sequence = event.sequence
        if isinstance(event, Failed):
            answers[sequence] = event.error
        elif event.token == stop or sequence.generated >= sequence.limit:
            core.remove(sequence)
            answers[sequence] = sequence.tokens[sequence.prompt_length :]
