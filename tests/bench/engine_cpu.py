"""Continuous batching against static batches on a CPU, and what the scheduler costs a step.

    python -m tests.bench.engine_cpu [--model DIR] [--json FILE] [--requests 48] [--threads 1]

Both sides answer the same requests with the same weights in the same process, one after the other. The static side
is transformers' own `generate` over left-padded batches in order of arrival, which runs until the longest answer of
each batch is done. A useful token is one that a request asked for. Ratios are from one run; absolute numbers are
this machine's.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, set_seed

from deploy.demo.random_checkpoint import write_random_checkpoint
from pipelines.engine.backends import SdpaBackend
from pipelines.engine.checkpoint import Checkpoint, open_checkpoint
from pipelines.engine.core import EngineCore
from pipelines.engine.load import build_core
from pipelines.engine.model import build_model
from pipelines.engine.options import EngineOptions
from pipelines.engine.plan import StepPlan
from pipelines.engine.request import Bounds, prepare
from pipelines.engine.runner import Runner, Ticket
from pipelines.engine.scheduler import Limits, Scheduler
from pipelines.engine.sequence import Sequence
from pipelines.engine.tokenizer import Tokenizer, read_tokenizer
from pipelines.engine.types import EngineRequest, GenerationParams, Priority, Tiles

BATCH = 16
DTYPE = torch.float32
CPU = torch.device("cpu")


def requests(count: int, size: int) -> list[EngineRequest]:
    """Mixed work: one to four tiles, answers of 8 to 400 tokens with a long tail, as pages of text have."""
    draw = np.random.default_rng(0)
    made = []
    for number in range(count):
        tiles = int(draw.integers(1, 5))
        pixels = draw.integers(0, 256, (tiles, size, size, 3), dtype=np.uint8)
        length = int(np.clip(draw.lognormal(4.0, 1.0), 8, 400))
        made.append(
            EngineRequest(
                request_id=str(number),
                question=f"Please read all the text in image {number}.",
                media=Tiles(pixels=pixels, counts=(tiles,), digests=(f"image-{number}",)),
                params=GenerationParams(max_new_tokens=length),
            )
        )
    return made


def sequences(checkpoint: Checkpoint, tokenizer: Tokenizer, asked: list[EngineRequest]) -> list[Sequence]:
    """The requests as sequences, so that both sides start from the same ids."""
    bounds = Bounds(context=checkpoint.config.text.max_positions, cache=1 << 30)
    return [
        prepare(each, number=n, tokenizer=tokenizer, config=checkpoint.config, bounds=bounds)
        for n, each in enumerate(asked)
    ]


def continuous(core: EngineCore, todo: list[Sequence]) -> tuple[float, int]:
    """Seconds and useful tokens of the engine; no stop token, so that both sides make the same number."""
    started = time.perf_counter()
    for sequence in todo:
        core.add(sequence)
    tokens = 0
    while core.busy:
        for event in core.step():
            if event.sequence.generated >= event.sequence.limit:
                tokens += event.sequence.generated
                core.remove(event.sequence)
    return time.perf_counter() - started, tokens


@torch.inference_mode()
def static(model: Any, vision: Any, todo: list[Sequence], pad: int) -> tuple[float, int, int]:
    """Seconds, useful tokens and tokens made by `generate` over left-padded batches."""
    started = time.perf_counter()
    useful = made = 0
    for first in range(0, len(todo), BATCH):
        batch = todo[first : first + BATCH]
        width = max(each.prompt_length for each in batch)
        ids = torch.full((len(batch), width), pad)
        mask = torch.zeros(len(batch), width, dtype=torch.int64)
        for row, each in enumerate(batch):
            ids[row, width - each.prompt_length :] = torch.tensor(each.tokens)
            mask[row, width - each.prompt_length :] = 1
        embeds = model.get_input_embeddings()(ids)
        pixels = torch.from_numpy(np.concatenate([image.pixels for each in batch for image in each.images]))
        visual = torch.cat([vision.tower(vision.normalise(part))[1] for part in torch.split(pixels, 4)]).flatten(0, 1)
        at = 0
        for row, each in enumerate(batch):
            for image in each.images:
                start = width - each.prompt_length + image.span.start
                size = image.span.end - image.span.start
                embeds[row, start : start + size] = visual[at : at + size]
                at += size
        longest = max(each.limit for each in batch)
        config = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=longest, min_new_tokens=longest, do_sample=False, pad_token_id=pad, use_cache=True
        )
        model.generate(inputs_embeds=embeds, attention_mask=mask, generation_config=config)
        useful += sum(each.limit for each in batch)
        made += longest * len(batch)
    return time.perf_counter() - started, useful, made


class Idle(Runner):
    """Answers every plan at once: what remains is the scheduler's and the cache's own time."""

    def launch(self, plan: StepPlan) -> Ticket:
        """Token 5 for everybody."""
        count = len(plan.sample)
        return Ticket(tokens=torch.full((count,), 5), logprobs=torch.zeros(count), event=None)


def overhead(checkpoint: Checkpoint, model: Any, count: int, steps: int = 300) -> float:
    """Microseconds a decode step of scheduler, page bookkeeping and plan, with `count` sequences running."""
    limits = Limits(slots=count, pages=count * 80, page_size=16, context=8192, max_rows=1 << 20)
    runner = Idle(
        model,
        checkpoint.config,
        backend=SdpaBackend(16),
        device=CPU,
        dtype=torch.bfloat16,
        pages=1,
        page_size=16,
        slots=count,
    )
    core = EngineCore(Scheduler(limits), runner, lookahead=0)
    for number in range(count):
        core.add(
            Sequence(
                number=number,
                priority=Priority.NORMAL,
                group=f"job-{number % 4}",
                tokens=[number] * 600,
                prompt_length=600,
                images=(),
                params=GenerationParams(),
                seed=0,
                limit=10_000,
                salt=b"",
            )
        )
    core.step()
    started = time.perf_counter()
    for _ in range(steps):
        core.step()
    return (time.perf_counter() - started) / steps * 1e6


def main() -> None:
    """Run, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="checkpoint folder; none: random weights in the demo model's shape")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    set_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.model or Path(scratch) / "demo-shape"
        if arguments.model is None:
            write_random_checkpoint(folder, seed=0, small=False)
        checkpoint, tokenizer = open_checkpoint(folder), read_tokenizer(folder)
        models = [
            build_model(
                checkpoint.config,
                checkpoint.tensors(),
                dtype=DTYPE,
                place=lambda _: CPU,
                image_token=tokenizer.image_token,
                text_attention=attention,
            )
            for attention in ("batchsight_paged", "sdpa")
        ]
    options = EngineOptions(max_slots=BATCH)
    asked = requests(arguments.requests, checkpoint.config.vision.image_size)
    warm = requests(2, checkpoint.config.vision.image_size)[:1]
    core = build_core(models[0], checkpoint.config, options, device=CPU, dtype=DTYPE)
    continuous(core, sequences(checkpoint, tokenizer, warm))
    static(models[1], core.runner.vision, sequences(checkpoint, tokenizer, warm), tokenizer.eos)
    core = build_core(models[0], checkpoint.config, options, device=CPU, dtype=DTYPE)
    ours, tokens = continuous(core, sequences(checkpoint, tokenizer, asked))
    theirs, useful, made = static(models[1], core.runner.vision, sequences(checkpoint, tokenizer, asked), tokenizer.eos)
    assert tokens == useful
    figures = {
        "machine": f"{platform.machine()}, {arguments.threads} thread(s), torch {torch.__version__}",
        "requests": len(asked),
        "useful_tokens": tokens,
        "continuous_tokens_per_second": round(tokens / ours, 1),
        "static_tokens_per_second": round(useful / theirs, 1),
        "ratio": round(theirs / ours, 2),
        "static_wasted_share": round(1 - useful / made, 3),
        # The best of three: what is added by other processes of the machine is not the scheduler's.
        "scheduler_us_per_step_64": round(min(overhead(checkpoint, models[0], 64) for _ in range(3)), 1),
        "scheduler_us_per_step_256": round(min(overhead(checkpoint, models[0], 256) for _ in range(3)), 1),
    }
    for name, value in figures.items():
        print(f"{name:32} {value}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
