"""`model check`: loads a checkpoint as the engine does and says what it found, and how far it is from a recorded
reference.

A reference is a safetensors file of what the original code computed on the same weights: `pixel_values [tiles, 3, S,
S]`, `input_ids` and `attention_mask` `[samples, L]` (left padded), `text_ids [1, L]`, `vit_last_hidden`,
`vit_embeds`, `logits`, `text_logits`, and greedy `gen_single`, `gen_batch`, `gen_batch_rp` (repetition penalty 1.2),
`gen_text`, whose column 0 is a BOS. Whatever of these is missing is not compared. Everything goes through the
engine's own paged path.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from pipelines.engine.checkpoint import Checkpoint, open_checkpoint
from pipelines.engine.core import EngineCore, Failed
from pipelines.engine.errors import CheckpointError
from pipelines.engine.load import build_core, choose_devices
from pipelines.engine.model import build_model
from pipelines.engine.names import native_shapes, parameter_count
from pipelines.engine.options import EngineOptions
from pipelines.engine.packing import pack_prefill
from pipelines.engine.prompt import Span
from pipelines.engine.sequence import Image, Sequence
from pipelines.engine.tokenizer import read_tokenizer
from pipelines.engine.types import GenerationParams, Priority

_SMALL = 1_000_000_000
_PENALTY = 1.2


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What a checkpoint is. `differences`: largest absolute ones; `equal_tokens`: shares between 0 and 1."""

    folder: str
    layout: str
    weights_hash: str
    files: int
    tensors: int
    parameters: int
    dtype: str
    image_size: int
    tokens_per_tile: int
    vision_layers: int
    text_layers: int
    vocabulary: int
    context_length: int
    tokenizer: bool
    trained: bool
    computed_in: str
    differences: dict[str, float] = field(default_factory=dict)
    equal_tokens: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)


def check_checkpoint(folder: Path | str, *, against: Path | None = None, device: str = "cpu") -> CheckReport:
    """Load a checkpoint in either layout and compare it; `CheckpointError` says why it cannot be loaded.

    Small models are computed in float64, so that rounding cannot flip a greedy token; large ones in bfloat16.
    """
    checkpoint = open_checkpoint(Path(folder))
    config = checkpoint.config
    reference = _read(against) if against is not None else {}
    has_tokenizer = (checkpoint.folder / "tokenizer.model").exists()
    image_token = read_tokenizer(checkpoint.folder).image_token if has_tokenizer else _infer_image_token(reference)
    dtype = torch.float64 if parameter_count(config) < _SMALL else torch.bfloat16
    options = EngineOptions(device=device, dtype="auto")
    place = choose_devices(options)[0]
    model = build_model(config, checkpoint.tensors(), dtype=dtype, place=lambda _: place, image_token=image_token)
    core = build_core(model, config, options, device=place, dtype=dtype)
    differences, equal = _compare(checkpoint, core, reference, image_token, dtype) if reference else ({}, {})
    return CheckReport(
        folder=checkpoint.folder.name,
        layout=config.layout,
        weights_hash=checkpoint.weights_hash(),
        files=len(checkpoint.files),
        tensors=len(native_shapes(config)),
        parameters=parameter_count(config),
        dtype=config.dtype,
        image_size=config.vision.image_size,
        tokens_per_tile=config.tokens_per_tile,
        vision_layers=config.vision.layers,
        text_layers=config.text.layers,
        vocabulary=config.text.vocabulary,
        context_length=config.text.max_positions,
        tokenizer=has_tokenizer,
        trained=config.trained,
        computed_in=str(dtype).removeprefix("torch."),
        differences=differences,
        equal_tokens=equal,
    )


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except Exception as error:
        raise CheckpointError(f"{path.name} cannot be read as a safetensors file") from error


def _infer_image_token(reference: dict[str, torch.Tensor]) -> int:
    """Without a tokenizer: the id that occurs once for each visual token."""
    if "input_ids" in reference and "vit_embeds" in reference:
        wanted = reference["vit_embeds"].shape[0] * reference["vit_embeds"].shape[1]
        ids, counts = torch.unique(reference["input_ids"], return_counts=True)
        if len(found := ids[counts == wanted]) == 1:
            return int(found[0])
    return 0


@torch.inference_mode()
def _compare(
    checkpoint: Checkpoint,
    core: EngineCore,
    reference: dict[str, torch.Tensor],
    image_token: int,
    dtype: torch.dtype,
) -> tuple[dict[str, float], dict[str, float]]:
    differences: dict[str, float] = {}
    equal: dict[str, float] = {}
    embeds: torch.Tensor | None = None
    if "pixel_values" in reference:
        pixels = reference["pixel_values"].to(core.runner.device, dtype)
        hidden, embeds = core.runner.vision.tower(pixels)
        for name, mine in (("vit_last_hidden", hidden), ("vit_embeds", embeds)):
            if name in reference:
                differences[name] = _largest(mine, reference[name])
    per_tile = checkpoint.config.tokens_per_tile
    if "input_ids" in reference and "attention_mask" in reference and embeds is not None:
        samples = _samples(reference["input_ids"], reference["attention_mask"], embeds, image_token, per_tile, core)
        if "logits" in reference:
            differences["logits"] = max(
                _largest(_logits(core, ids, images), reference["logits"][row, -len(ids) :])
                for row, (ids, images) in enumerate(samples)
            )
        for name, penalty, crowd in (
            ("gen_single", 1.0, False),
            ("gen_batch", 1.0, True),
            ("gen_batch_rp", _PENALTY, True),
        ):
            if name in reference:
                equal[name] = _equal(core, samples, reference[name], penalty=penalty, crowd=crowd)
    if "text_ids" in reference:
        text: list[_Sample] = [(row.tolist(), ()) for row in reference["text_ids"]]
        if "text_logits" in reference:
            differences["text_logits"] = max(
                _largest(_logits(core, ids, ()), reference["text_logits"][row]) for row, (ids, _) in enumerate(text)
            )
        if "gen_text" in reference:
            equal["gen_text"] = _equal(core, text, reference["gen_text"], penalty=1.0, crowd=False)
    return differences, equal


_Sample = tuple[list[int], tuple[Image, ...]]


def _samples(
    ids: torch.Tensor, mask: torch.Tensor, embeds: torch.Tensor, image_token: int, per_tile: int, core: EngineCore
) -> list[_Sample]:
    samples: list[_Sample] = []
    tile = 0
    for row, keep in zip(ids, mask.bool(), strict=True):
        tokens = row[keep].tolist()
        count = tokens.count(image_token) // per_tile
        images: tuple[Image, ...] = ()
        if count:
            start = tokens.index(image_token)
            key = f"reference-{len(samples)}"
            core.preload(key, embeds[tile : tile + count])
            span = Span(start=start, end=start + count * per_tile)
            images = (Image(key=key, span=span, pixels=np.zeros((count, 1, 1, 3), dtype=np.uint8)),)
            tile += count
        samples.append((tokens, images))
    return samples


def _largest(mine: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((mine.double().cpu() - theirs.double()).abs().max())


def _logits(core: EngineCore, ids: list[int], images: tuple[Image, ...]) -> torch.Tensor:
    """Return the logits at every position, from one packed step over pages of its own."""
    page_size = core.scheduler.limits.page_size
    pages = core.scheduler.pool.allocate(-(-len(ids) // page_size))
    logits = core.runner.logits(pack_prefill(ids, images, pages, page_size))
    core.scheduler.pool.release(pages)
    return logits


def _equal(core: EngineCore, samples: list[_Sample], wanted: torch.Tensor, *, penalty: float, crowd: bool) -> float:
    length = wanted.shape[1] - 1
    params = GenerationParams(max_new_tokens=length, repetition_penalty=penalty)
    groups = [samples] if crowd else [[sample] for sample in samples]
    mine = [row for group in groups for row in _generate(core, group, params)]
    return float((torch.tensor(mine) == wanted[:, 1:]).double().mean())


def _generate(core: EngineCore, samples: list[_Sample], params: GenerationParams) -> list[list[int]]:
    sequences = [
        Sequence(
            number=number,
            priority=Priority.NORMAL,
            group="check",
            tokens=list(ids),
            prompt_length=len(ids),
            images=images,
            params=params,
            seed=0,
            limit=params.max_new_tokens,
            salt=b"",
        )
        for number, (ids, images) in enumerate(samples)
    ]
    for sequence in sequences:
        core.add(sequence)
    while core.busy:
        for event in core.step():
            if isinstance(event, Failed):
                raise event.error
            if event.sequence.generated >= event.sequence.limit:
                core.remove(event.sequence)
    return [sequence.tokens[sequence.prompt_length :] for sequence in sequences]
