"""A checkpoint of random weights in the original layout: it proves plumbing, and nothing it answers has meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from deploy.demo.layout import (
    TINY,
    Shape,
    config_json,
    generation_config_json,
    tensor_shapes,
    write_checksums,
    write_json,
)
from deploy.demo.tokenizer import write_tokenizer

_NOTE = "Random weights: answers have no meaning."


def random_tensors(shape: Shape, *, seed: int, dtype: str) -> dict[str, np.ndarray[Any, Any]]:
    """Draw every tensor of the original layout.

    Matrices are normal with variance 1 / fan-in, embeddings have a standard deviation of 0.5 so that a prompt
    matters, norms and layer scales stay near one.
    """
    draw = np.random.default_rng(seed)
    tensors = {}
    for name, size in tensor_shapes(shape).items():
        values = draw.standard_normal(size).astype(np.float32)
        if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "mlp1.0.weight", ".ls1", ".ls2")):
            values = 1.0 + 0.1 * values
        elif "embedding" in name and "patch" not in name:
            values = 0.5 * values
        elif len(size) == 1:
            values = 0.1 * values
        else:
            values = values / np.sqrt(np.prod(size[1:]), dtype=np.float32)
        tensors[name] = values.astype(dtype)
    return tensors


def _write_shards(folder: Path, tensors: dict[str, np.ndarray[Any, Any]], count: int) -> None:
    names = list(tensors)
    size = -(-len(names) // count)
    weight_map: dict[str, str] = {}
    for number in range(count):
        file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        part = names[number * size : (number + 1) * size]
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)


def write_random_checkpoint(
    folder: Path,
    *,
    seed: int,
    small: bool = True,
    shape: Shape | None = None,
    dtype: str = "float32",
    shards: int = 1,
) -> Shape:
    """Write a whole checkpoint with random weights and return its shape.

    Args:
        folder: where to write; created if missing.
        seed: the same seed gives the same bytes.
        small: True for the tiny shape of quick tests (56-pixel tiles, 4 tokens a tile, about 0.6 MB), False for
            the demo model's own shape (448-pixel tiles, 64 tokens a tile).
        shape: any other shape; overrides `small`.
        dtype: ``float32`` or ``float16``.
        shards: above one, the weights are split over that many files with an index.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shape = shape or (TINY if small else Shape())
    tensors = random_tensors(shape, seed=seed, dtype=dtype)
    if shards > 1:
        _write_shards(folder, tensors, shards)
    else:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    write_json(folder / "config.json", config_json(shape, dtype=dtype, trained=False, note=_NOTE))
    write_json(folder / "generation_config.json", generation_config_json())
    write_tokenizer(folder)
    write_checksums(folder)
    return shape
