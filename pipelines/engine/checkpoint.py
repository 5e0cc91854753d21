"""Reads a checkpoint's tensors shard by shard, in either layout, under their native names.

Only safetensors are read: a pickle can run code. Every tensor is checked against the table of `names.py`; an unknown,
missing, doubled or wrongly shaped tensor refuses the checkpoint with a sentence that names it.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from pipelines.engine.config import Layout, ModelConfig, read_config
from pipelines.engine.errors import CheckpointError
from pipelines.engine.names import Target, native_shapes, target

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_HASH_CACHE = ".batchsight-hash.json"
_hashes: dict[tuple[str, int, int], str] = {}
_hashes_lock = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """An opened checkpoint folder: its configuration and its weight files, in name order."""

    folder: Path
    config: ModelConfig
    files: tuple[Path, ...]

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield every native tensor once, on the CPU in the file's dtype, one shard in memory at a time.

        Raises `CheckpointError` at the first tensor that is unknown, doubled or wrongly shaped, and at the end where
        one is missing.
        """
        missing = native_shapes(self.config)
        for path in self.files:
            try:
                with safe_open(path, framework="pt", device="cpu") as shard:
                    for name in shard.keys():  # noqa: SIM118 - a safetensors handle is not a mapping
                        for native, tensor in self._native(name, shard.get_tensor(name)):
                            _accept(missing, native, tuple(tensor.shape))
                            yield native, tensor
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{path.name} is damaged or not a safetensors file") from error
        if missing:
            names = sorted(missing)
            raise CheckpointError(f"{len(names)} tensors are missing, the first is {names[0]}")

    def _native(self, name: str, tensor: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
        if self.config.layout is Layout.NATIVE:
            return [(name, tensor)]
        goal = target(name)
        if goal is None:
            raise CheckpointError(f"unknown tensor {name}")
        return list(zip(goal.names, _split(name, tensor, goal, self.config), strict=True))

    def weights_hash(self) -> str:
        """Return the SHA-256 (hex) over the sorted names and hashes of the weight files.

        File hashes are remembered by size and time of change, in this process and, where the folder can be written,
        beside the files. Where the folder has a `SHA256SUMS`, a weight file that disagrees with it is refused.
        """
        hashes = _file_hashes(self.folder, self.files)
        for name, wanted in _checksums(self.folder).items():
            if name in hashes and hashes[name] != wanted:
                raise CheckpointError(f"{name} does not match SHA256SUMS: the file is damaged or was exchanged")
        text = "".join(f"{name} {hashes[name]}\n" for name in sorted(hashes))
        return hashlib.sha256(text.encode()).hexdigest()


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read the configuration and find the weight files; `CheckpointError` where there are none, or pickles only."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder")
    return Checkpoint(folder=folder, config=read_config(folder), files=_weight_files(folder))


def _weight_files(folder: Path) -> tuple[Path, ...]:
    index = folder / _INDEX
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{_INDEX} cannot be read") from error
        for name in names:
            if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
                raise CheckpointError(f"{_INDEX} names {name!r}, which is no safetensors file of this folder")
            if not (folder / name).is_file():
                raise CheckpointError(f"the shard {name} is missing")
        return tuple(folder / name for name in names)
    if (folder / _SINGLE).is_file():
        return (folder / _SINGLE,)
    if any(path.suffix in _PICKLED for path in folder.iterdir()):
        raise CheckpointError("only pickled weights were found: they can run code, convert them to safetensors first")
    raise CheckpointError(f"no weights were found: expected {_SINGLE} or {_INDEX}")


def _accept(missing: dict[str, tuple[int, ...]], name: str, shape: tuple[int, ...]) -> None:
    wanted = missing.pop(name, None)
    if wanted is None:
        raise CheckpointError(f"unknown or doubled tensor {name}")
    if shape != wanted:
        raise CheckpointError(f"{name} has shape {list(shape)}, expected {list(wanted)}")


def _split(name: str, tensor: torch.Tensor, goal: Target, config: ModelConfig) -> list[torch.Tensor]:
    if goal.split is None:
        return [tensor]
    if goal.split == "chunks":
        if tensor.shape[0] % 3:
            raise CheckpointError(f"{name} has shape {list(tensor.shape)}, its first side should divide by 3")
        return [part.contiguous() for part in tensor.chunk(3)]
    text = config.text
    rows = (text.heads + 2 * text.kv_heads) * text.head_dim
    if tensor.dim() != 2 or tensor.shape[0] != rows:
        raise CheckpointError(f"{name} has shape {list(tensor.shape)}, expected {[rows, text.hidden]}")
    # InternLM2 keeps, for each key/value head, its query heads, then the key, then the value.
    view = tensor.view(text.kv_heads, text.groups + 2, text.head_dim, tensor.shape[1])
    parts = (view[:, : text.groups], view[:, text.groups], view[:, text.groups + 1])
    return [part.reshape(-1, tensor.shape[1]).contiguous() for part in parts]


def _checksums(folder: Path) -> dict[str, str]:
    path = folder / "SHA256SUMS"
    if not path.exists():
        return {}
    sums = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition(" ")
        sums[name.strip().lstrip("*")] = digest.lower()
    return sums


def _file_hashes(folder: Path, files: tuple[Path, ...]) -> dict[str, str]:
    cache = _read_cache(folder / _HASH_CACHE)
    hashes: dict[str, str] = {}
    fresh = False
    for path in files:
        stat = path.stat()
        key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
        known = cache.get(path.name)
        with _hashes_lock:
            digest = _hashes.get(key)
        if digest is None and known and known[:2] == [stat.st_size, stat.st_mtime_ns]:
            digest = str(known[2])
        if digest is None:
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            fresh = True
        with _hashes_lock:
            _hashes[key] = digest
        hashes[path.name] = digest
        cache[path.name] = [stat.st_size, stat.st_mtime_ns, digest]
    if fresh and os.access(folder, os.W_OK) and sum(path.stat().st_size for path in files) > 1 << 30:
        # Below a gibibyte hashing takes no time worth a file in somebody's folder.
        (folder / _HASH_CACHE).write_text(json.dumps(cache), encoding="utf-8")
    return hashes


def _read_cache(path: Path) -> dict[str, list[Any]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
