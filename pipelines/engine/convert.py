"""`model convert`: rewrites a checkpoint in transformers' native layout, shard by shard.

The result loads with `InternVLForConditionalGeneration.from_pretrained` and with this engine. The tokenizer's files are
copied; the original's Python files are not.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from pipelines.engine.checkpoint import open_checkpoint
from pipelines.engine.errors import CheckpointError
from pipelines.engine.model import native_config
from pipelines.engine.tokenizer import read_tokenizer

_COPIED = (
    "tokenizer.model",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "generation_config.json",
)
_SHARD_BYTES = 5 << 30


def convert_checkpoint(folder: Path | str, out: Path | str, *, shard_bytes: int = _SHARD_BYTES) -> tuple[str, ...]:
    """Write the native layout of `folder` into the new or empty folder `out`; returns the names of the weight files.

    Raises `CheckpointError` where the checkpoint cannot be loaded as it is, or where `out` holds something.
    """
    source, goal = open_checkpoint(Path(folder)), Path(out)
    if goal.exists() and any(goal.iterdir()):
        raise CheckpointError(f"{goal} is not empty")
    tokenizer = read_tokenizer(source.folder)
    goal.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, int] = {}
    shard: dict[str, torch.Tensor] = {}
    number = size = total = 0
    for name, tensor in source.tensors():
        if shard and size + tensor.nbytes > shard_bytes:
            save_file(shard, goal / f"part-{number}", {"format": "pt"})
            number, size, shard = number + 1, 0, {}
        shard[name] = tensor.contiguous()
        weight_map[name] = number
        size += tensor.nbytes
        total += tensor.nbytes
    save_file(shard, goal / f"part-{number}", {"format": "pt"})
    names = _rename(goal, number + 1)
    if len(names) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": {name: names[at] for name, at in weight_map.items()}}
        (goal / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    config = source.config
    raw = native_config(config, tokenizer.image_token).to_dict()
    raw |= {
        "architectures": ["InternVLForConditionalGeneration"],
        "dtype": config.dtype,
        "use_thumbnail": config.use_thumbnail,
        "max_dynamic_patch": config.max_tiles,
        "batchsight": {"trained": config.trained},
    }
    (goal / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
    for name in _COPIED:
        if (source.folder / name).exists():
            shutil.copyfile(source.folder / name, goal / name)
    return names


def _rename(goal: Path, count: int) -> tuple[str, ...]:
    names = tuple(f"model-{at + 1:05d}-of-{count:05d}.safetensors" for at in range(count))
    if count == 1:
        names = ("model.safetensors",)
    for at, name in enumerate(names):
        (goal / f"part-{at}").rename(goal / name)
    return names
