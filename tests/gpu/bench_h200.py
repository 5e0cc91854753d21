"""The full 25.5 B model with random weights made on the device: pages, videos, static generate, shares of the roofline.

    python tests/gpu/bench_h200.py [--fp8] [--fp8-vision] [--json FILE] [--quick] [--tiny]

One call, a few minutes, no download: torch (2.11 or newer), transformers (5.17 or newer), numpy and safetensors are
enough. The ceilings (matmul TFLOP/s, memory GB/s) are measured in the same run, and every share is against them.
`--tiny` runs the same script with a toy shape, on a CPU too: it proves that the script runs, and its figures mean
nothing.

Times of a page, by the roofline: vision and prefill are bound by arithmetic, a decode step by reading the weights
once and every sequence's keys and values.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipelines.engine import attention
from pipelines.engine.config import ModelConfig, parse_config
from pipelines.engine.core import EngineCore, Failed
from pipelines.engine.load import build_core, probe_tokens
from pipelines.engine.model import build_model
from pipelines.engine.names import native_shapes, parameter_count
from pipelines.engine.options import EngineOptions
from pipelines.engine.plan import Encode
from pipelines.engine.prompt import Span
from pipelines.engine.quantize import edit_for, quantize_vision
from pipelines.engine.sequence import Image, Sequence
from pipelines.engine.types import GenerationParams, Priority

FULL = {
    "vision": {"hidden_size": 3200, "num_hidden_layers": 45, "num_attention_heads": 25, "intermediate_size": 12800},
    "text": {
        "hidden_size": 6144,
        "num_hidden_layers": 48,
        "num_attention_heads": 48,
        "num_key_value_heads": 8,
        "intermediate_size": 16384,
        "vocab_size": 92553,
    },
    "image": {"image_size": 448, "patch_size": 14},
}
TINY = {
    "vision": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128},
    "text": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "vocab_size": 300,
    },
    "image": {"image_size": 56, "patch_size": 14},
}
IMAGE_TOKEN = 5


def make_config(shape: dict[str, dict[str, int]]) -> ModelConfig:
    """The configuration that a checkpoint of this shape would have."""
    text = {"max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "rope_theta": 1e6, **shape["text"]}
    raw = {"model_type": "internvl_chat", "ps_version": "v2", "template": "internlm2-chat"}
    return parse_config({**raw, "llm_config": text, "vision_config": {**shape["vision"], **shape["image"]}})


def random_tensors(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the model, drawn on the device: matrices with deviation 0.02, norms and layer scales of one."""
    draw = torch.Generator(device).manual_seed(0)
    for name, shape in native_shapes(config).items():
        values = torch.empty(shape, device=device, dtype=dtype)
        flat = len(shape) == 1 and not name.endswith("bias")
        yield name, values.fill_(1.0) if flat else values.normal_(0, 0.02, generator=draw)


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """What the device can do: FLOP/s of a bf16 matmul, bytes/s of reading memory."""

    flops: float
    bandwidth: float


class Bench:
    """The model on its device, and how time is taken there."""

    def __init__(self, *, tiny: bool, fp8: bool, fp8_vision: bool) -> None:
        self.cuda = torch.cuda.is_available()
        self.device = torch.device("cuda:0" if self.cuda else "cpu")
        self.dtype = torch.bfloat16 if self.cuda else torch.float32
        self.tiny = tiny
        self.fp8 = fp8
        self.fp8_vision = fp8_vision
        self.config = make_config(TINY if tiny else FULL)
        self.model = build_model(
            self.config,
            random_tensors(self.config, self.device, self.dtype),
            dtype=self.dtype,
            place=lambda _: self.device,
            image_token=IMAGE_TOKEN,
            edit=edit_for("fp8" if fp8 else "none", self.device),
        )
        self.vision_error = 0.0
        if fp8_vision:
            tower = self.model.model.vision_tower
            self.vision_error = quantize_vision(
                tower, lambda: probe_tokens(self.model, self.config, device=self.device, dtype=self.dtype), limit=1.0
            )

    def join_layers(self) -> None:
        """What `load_engine` does on a GPU after loading."""
        if self.cuda:
            from pipelines.engine.fused import fuse

            fuse(self.model)
            torch.cuda.empty_cache()

    def sync(self) -> float:
        """Wait for the device; returns the time."""
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def core(self, slots: int, *, cache: int = 0) -> EngineCore:
        """An engine core with a cache of so many bytes; 0: as large as fits, so that only one may live at a time."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        options = EngineOptions(max_slots=slots, kv_cache_bytes=64 << 20 if self.tiny else cache)
        return build_core(self.model, self.config, options, device=self.device, dtype=self.dtype)

    def ceilings(self) -> Ceilings:
        """Measure matmul and memory, best of five."""
        size = 512 if self.tiny else 8192
        left, right = (torch.randn(size, size, device=self.device, dtype=self.dtype) for _ in range(2))
        words = torch.zeros((1 << 20) if self.tiny else (4 << 30), dtype=torch.uint8, device=self.device).view(
            torch.int32
        )
        flops, bandwidth = [], []
        for _ in range(6):
            start = self.sync()
            for _ in range(4):
                left @ right
            middle = self.sync()
            for _ in range(4):
                words.sum()
            end = self.sync()
            flops.append(4 * 2 * size**3 / (middle - start))
            bandwidth.append(4 * words.nbytes / (end - middle))
        return Ceilings(flops=max(flops[1:]), bandwidth=max(bandwidth[1:]))

    def request(self, number: int, images: int, tiles: int, length: int, *, text: int = 82) -> Sequence:
        """A prompt of `images` of `tiles` tiles each and `text` other tokens, different in every one."""
        size, per_tile = self.config.vision.image_size, self.config.tokens_per_tile
        draw = np.random.default_rng(number)
        vocabulary = self.config.text.vocabulary
        ids: list[int] = draw.integers(6, vocabulary, text // 2).tolist()
        spans = []
        for _ in range(images):
            start = len(ids)
            ids += [IMAGE_TOKEN] * (tiles * per_tile)
            spans.append(Span(start=start, end=len(ids)))
        ids += draw.integers(6, vocabulary, text - text // 2).tolist()
        pixels = draw.integers(0, 256, (images, tiles, size, size, 3), dtype=np.uint8)
        return Sequence(
            number=number,
            priority=Priority.NORMAL,
            group="",
            tokens=ids,
            prompt_length=len(ids),
            images=tuple(Image(key=f"{number}-{at}", span=span, pixels=pixels[at]) for at, span in enumerate(spans)),
            params=GenerationParams(),
            seed=0,
            limit=length,
            salt=str(number).encode(),
        )

    def run(self, core: EngineCore, todo: list[Sequence]) -> dict[str, float]:
        """Answer everything; seconds, decode step times in ms and useful tokens."""
        start = self.sync()
        for sequence in todo:
            core.add(sequence)
        last, steps = start, []
        while core.busy:
            for event in core.step():
                if isinstance(event, Failed):
                    raise event.error
                if event.sequence.generated >= event.sequence.limit:
                    core.remove(event.sequence)
            now = time.perf_counter()
            if core.last is not None and core.last.plan.rows == core.last.plan.decodes == len(todo):
                steps.append(now - last)
            last = now
        seconds = self.sync() - start
        return {
            "seconds": seconds,
            "tokens": sum(each.generated for each in todo),
            "step_ms": 1e3 * statistics.median(steps) if steps else float("nan"),
        }

    @torch.inference_mode()
    def static(self, core: EngineCore, todo: list[Sequence], batch: int) -> float:
        """Seconds of transformers' own `generate` over batches in order of arrival, with the same weights."""
        from transformers import GenerationConfig

        text = self.model.model.language_model
        text.config._attn_implementation = "sdpa"
        try:
            start = self.sync()
            for first in range(0, len(todo), batch):
                self._static_batch(core, todo[first : first + batch], GenerationConfig)
            return self.sync() - start
        finally:
            text.config._attn_implementation = attention.NAME

    def _static_batch(self, core: EngineCore, batch: list[Sequence], make: Any) -> None:
        width = max(each.prompt_length for each in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, each in enumerate(batch):
            ids[row, width - each.prompt_length :] = torch.tensor(each.tokens[: each.prompt_length])
            mask[row, width - each.prompt_length :] = 1
        embeds = self.model.get_input_embeddings()(ids.to(self.device))
        vision = core.runner.vision
        for row, each in enumerate(batch):
            for image in each.images:
                pixels = torch.from_numpy(image.pixels).to(self.device)
                at = width - each.prompt_length + image.span.start
                embeds[row, at : at + image.span.end - image.span.start] = vision.tower(vision.normalise(pixels))[
                    1
                ].flatten(0, 1)
        longest = max(each.limit for each in batch)
        config = make(max_new_tokens=longest, min_new_tokens=longest, do_sample=False, pad_token_id=2, use_cache=True)
        self.model.generate(inputs_embeds=embeds, attention_mask=mask.to(self.device), generation_config=config)


def vision_flops(config: ModelConfig) -> float:
    """FLOP of one tile: matmuls of the tower, attention scores and values, projector."""
    v, t = config.vision, config.text
    linear = v.layers * (4 * v.hidden**2 + 2 * v.hidden * v.ffn)
    scores = v.layers * 2 * v.tokens * v.hidden
    projector = config.tokens_per_tile * (4 * v.hidden * t.hidden + t.hidden**2)
    return 2.0 * (v.tokens * (linear + scores) + projector)


def text_parameters(config: ModelConfig) -> int:
    """Parameters of the language layers."""
    t = config.text
    return t.layers * (2 * t.hidden**2 + 2 * t.hidden * t.kv_heads * t.head_dim + 3 * t.hidden * t.ffn)


def prefill_flops(config: ModelConfig, length: int) -> float:
    """FLOP of one prompt: matmuls of the layers and causal attention."""
    return 2.0 * length * text_parameters(config) + 2.0 * config.text.layers * config.text.hidden * length**2


def decode_seconds(bench: Bench, ceilings: Ceilings, batch: int, length: float) -> float:
    """A decode step: weights and head once, keys and values of every sequence; or its arithmetic, if that is more."""
    config, size = bench.config, bench.dtype.itemsize
    layers, head = text_parameters(config), config.text.vocabulary * config.text.hidden
    kv = 2 * config.text.layers * config.text.kv_heads * config.text.head_dim * size
    read = layers * (1 if bench.fp8 else size) + head * size + batch * length * kv
    return max(read / ceilings.bandwidth, 2.0 * batch * (layers + head) / ceilings.flops)


def roofline(bench: Bench, ceilings: Ceilings, batch: int, tiles: int, prompt: int, length: int) -> float:
    """Requests a second: vision and prefill one after the other, decoding shared by the batch."""
    vision = vision_flops(bench.config) * tiles / (2.0 if bench.fp8_vision else 1.0)
    prefill = prefill_flops(bench.config, prompt) / (2.0 if bench.fp8 else 1.0)
    alone = (vision + prefill) / ceilings.flops
    return 1.0 / (alone + length * decode_seconds(bench, ceilings, batch, prompt + length / 2) / batch)


def part_speeds(bench: Bench) -> dict[str, float]:
    """TFLOP/s of the vision tower (16 tiles) and of a prefill, each alone."""
    tiles = 2 if bench.tiny else 16
    core = bench.core(4)
    size = bench.config.vision.image_size
    pixels = np.zeros((tiles, size, size, 3), dtype=np.uint8)
    vision = core.runner.vision
    times = []
    with torch.inference_mode():
        for number in range(4):
            start = bench.sync()
            vision.launch([Encode(key=f"speed-{number}", first=0, count=tiles, pixels=pixels)])
            times.append(bench.sync() - start)
    length = 128 if bench.tiny else 4096
    prefill = []
    for number in range(3):
        sequence = bench.request(900 + number, 0, 0, 1, text=length)
        prefill.append(bench.run(core, [sequence])["seconds"])
    return {
        "vision_tflops": vision_flops(bench.config) * tiles / min(times) / 1e12,
        "prefill_tflops": prefill_flops(bench.config, length) / min(prefill) / 1e12,
    }


def idle_share(bench: Bench, core: EngineCore, batch: int, length: int) -> tuple[float, list[str]]:
    """Share of the time in which no kernel ran during steady decoding, and the longest kernels; CUDA only."""
    if not bench.cuda:
        return float("nan"), []
    from torch.profiler import ProfilerActivity, profile

    todo = [bench.request(5000 + n, 0, 0, length, text=3000 if not bench.tiny else 60) for n in range(batch)]
    for sequence in todo:
        core.add(sequence)
    while not (core.last and core.last.plan.rows == core.last.plan.decodes == batch):
        core.step()
    for _ in range(8):
        core.step()
    start = bench.sync()
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        for _ in range(24):
            core.step()
        seconds = bench.sync() - start
    for sequence in todo:
        core.remove(sequence)
    while core.busy:
        core.step()
    events = [event for event in recorded.key_averages() if event.self_device_time_total > 0]
    events.sort(key=lambda event: -event.self_device_time_total)
    busy = sum(event.self_device_time_total for event in events) / 1e6
    names = [f"{event.self_device_time_total / 1e6 / busy:.0%} {event.key[:60]}" for event in events[:6]]
    return max(0.0, 1 - busy / seconds), names


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run everything and print the table last."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fp8", action="store_true", help="fp8 language model, 128 sequences")
    parser.add_argument(
        "--fp8-vision", action="store_true", help="fp8 tower too; with random weights its error means nothing"
    )
    parser.add_argument("--quick", action="store_true", help="short answers and no static generate")
    parser.add_argument("--tiny", action="store_true", help="a toy shape, to see that the script runs")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    chosen = parser.parse_args(arguments)
    bench = Bench(tiny=chosen.tiny, fp8=chosen.fp8 or chosen.fp8_vision, fp8_vision=chosen.fp8_vision)
    ceilings = bench.ceilings()
    figures: dict[str, Any] = {
        "device": torch.cuda.get_device_name(0) if bench.cuda else "cpu",
        "torch": torch.__version__,
        "parameters": parameter_count(bench.config),
        "matmul_tflops": ceilings.flops / 1e12,
        "read_gb_per_second": ceilings.bandwidth / 1e9,
        "vision_error": bench.vision_error,
    }
    short = chosen.quick or chosen.tiny
    answer = 20 if short else 500
    tiles = 2 if chosen.tiny else 13
    draw = np.random.default_rng(1)
    lengths = [5, 20] * 2 if chosen.tiny else np.clip(draw.lognormal(5.8, 0.9, 32), 40, 1500).astype(int).tolist()

    def mixed() -> list[Sequence]:
        return [bench.request(80_000 + n, 1, tiles, int(length)) for n, length in enumerate(lengths)]

    if not chosen.quick:
        # Before the layers are joined: generate runs on the native ones.
        theirs = bench.static(bench.core(1, cache=1 << 30), mixed(), batch=2 if chosen.tiny else 16)
    bench.join_layers()
    figures |= part_speeds(bench)
    for batch in (4,) if chosen.tiny else (128,) if bench.fp8 else (16, 64):
        core = bench.core(batch)
        bench.run(core, [bench.request(800, 1, 1, 4)])
        todo = [bench.request(1000 * batch + n, 1, tiles, answer) for n in range(batch)]
        found = bench.run(core, todo)
        ideal = roofline(bench, ceilings, batch, tiles, todo[0].prompt_length, answer)
        figures[f"pages_{batch}"] = {
            "pages_per_second": batch / found["seconds"],
            "roofline_pages_per_second": ideal,
            "share_of_roofline": batch / found["seconds"] / ideal,
            "decode_step_ms": found["step_ms"],
            "roofline_step_ms": 1e3 * decode_seconds(bench, ceilings, batch, todo[0].prompt_length + answer / 2),
            "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if bench.cuda else 0.0,
            "attention": core.runner.attention,
        }
        idle, kernels = idle_share(bench, core, batch, 64)
        figures[f"pages_{batch}"] |= {"idle_share": idle, "longest_kernels": kernels}
        del core
    core = bench.core(16)
    count, frames = (2, 3) if chosen.tiny else (16, 32)
    videos = [bench.request(70_000 + n, frames, 1, 20 if short else 100) for n in range(count)]
    found = bench.run(core, videos)
    figures["videos_per_second"] = count / found["seconds"]
    del core
    if not chosen.quick:
        ours = bench.run(bench.core(len(lengths)), mixed())["seconds"]
        figures["mixed"] = {"continuous_seconds": ours, "static_seconds": theirs, "ratio": theirs / ours}
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    show(figures)
    return figures


def show(figures: dict[str, Any], indent: str = "") -> None:
    """Print the figures as a table."""
    for name, value in figures.items():
        if isinstance(value, dict):
            print(f"{indent}{name}")
            show(value, indent + "  ")
        elif isinstance(value, list):
            for line in value:
                print(f"{indent}  {line}")
        else:
            print(f"{indent}{name:28} {value:.4g}" if isinstance(value, float) else f"{indent}{name:28} {value}")


if __name__ == "__main__":
    main()
