from __future__ import annotations

import hashlib
import json
from pathlib import Path

from safetensors.numpy import load_file

from deploy.demo.layout import TINY, Shape, tensor_shapes
from deploy.demo.random_checkpoint import write_random_checkpoint


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_random_checkpoint(tmp_path / name, seed=9)
    one, two = ((tmp_path / name / "SHA256SUMS").read_text() for name in ("one", "two"))
    assert one == two


def test_shards_hold_every_tensor_once_and_the_index_finds_them(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path, seed=1, shards=3)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert index.keys() == tensor_shapes(TINY).keys()
    stored = {file: set(load_file(tmp_path / file)) for file in set(index.values())}
    assert len(stored) == 3
    assert all(name in stored[file] for name, file in index.items())
    assert sum(map(len, stored.values())) == len(index)


def test_checksums_cover_every_file(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path, seed=1)
    lines = [line.split("  ") for line in (tmp_path / "SHA256SUMS").read_text().splitlines()]
    files = {path.name for path in tmp_path.iterdir()} - {"SHA256SUMS"}
    assert {name for _, name in lines} == files
    assert all(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest for digest, name in lines)


def test_the_config_says_that_the_weights_are_random(tmp_path: Path) -> None:
    shape = write_random_checkpoint(tmp_path, seed=1, small=False, dtype="float16")
    config = json.loads((tmp_path / "config.json").read_text())
    assert shape == Shape()
    assert config["batchsight"]["trained"] is False
    assert config["vision_config"]["patch_size"] == shape.patch_size
