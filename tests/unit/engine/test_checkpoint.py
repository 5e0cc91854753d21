from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deploy.demo.layout import TINY
from deploy.demo.random_checkpoint import write_random_checkpoint
from pipelines.engine.checkpoint import open_checkpoint
from pipelines.engine.config import Layout, parse_config, read_config
from pipelines.engine.errors import CheckpointError
from pipelines.engine.load import load_engine
from pipelines.engine.names import native_shapes, parameter_count, target

Edit = Callable[[dict[str, torch.Tensor]], None]


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    return copy


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    for key, value in changes.items():
        at = raw
        *parents, last = key.split("__")
        for parent in parents:
            at = at[parent]
        at[last] = value
    path.write_text(json.dumps(raw))


def edit_weights(folder: Path, edit: Edit) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
    (folder / "SHA256SUMS").unlink()


def read_all(folder: Path) -> dict[str, torch.Tensor]:
    return dict(open_checkpoint(folder).tensors())


def test_the_original_layout_is_read_under_native_names(checkpoint: Path) -> None:
    opened = open_checkpoint(checkpoint)
    assert opened.config.layout is Layout.ORIGINAL
    assert {name: tuple(tensor.shape) for name, tensor in opened.tensors()} == native_shapes(opened.config)


def test_shards_hold_the_same_tensors_as_one_file(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "one", seed=1)
    write_random_checkpoint(tmp_path / "many", seed=1, shards=4)
    one, many = read_all(tmp_path / "one"), read_all(tmp_path / "many")
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)
    assert open_checkpoint(tmp_path / "one").weights_hash() != open_checkpoint(tmp_path / "many").weights_hash()


def test_the_packed_attention_weights_are_cut_by_head(checkpoint: Path) -> None:
    raw = load_file(checkpoint / "model.safetensors")["language_model.model.layers.1.attention.wqkv.weight"]
    native = read_all(checkpoint)
    at, dim = "model.language_model.layers.1.self_attn.", TINY.text_hidden // TINY.text_heads
    # Four query heads over two key/value heads: q0 q1 k0 v0 q2 q3 k1 v1.
    blocks = torch.split(raw, dim)
    assert torch.equal(native[at + "q_proj.weight"], torch.cat([blocks[0], blocks[1], blocks[4], blocks[5]]))
    assert torch.equal(native[at + "k_proj.weight"], torch.cat([blocks[2], blocks[6]]))
    assert torch.equal(native[at + "v_proj.weight"], torch.cat([blocks[3], blocks[7]]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ps_version": "v1"}, "ps_version"),
        ({"select_layer": -2}, "select_layer"),
        ({"template": "Hermes-2"}, "template"),
        ({"downsample_ratio": 1.0}, "downsample_ratio"),
        ({"use_llm_lora": 16}, "adapter"),
        ({"model_type": "llava"}, "model_type"),
        ({"llm_config__model_type": "qwen2"}, "InternLM2"),
        ({"llm_config__rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
        ({"llm_config__bias": True}, "bias"),
        ({"llm_config__num_key_value_heads": 3}, "heads"),
        ({"llm_config__tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"llm_config__hidden_size": "wide"}, "wrong type"),
        ({"vision_config__norm_type": "layer_norm"}, "rms_norm"),
        ({"vision_config__image_size": 60, "force_image_size": 60}, "image_size"),
        ({"force_image_size": 112}, "force_image_size"),
        ({"quantization_config": {"load_in_4bit": True}}, "4-bit"),
    ],
)
def test_another_model_is_refused_with_a_sentence(folder: Path, changes: dict[str, Any], words: str) -> None:
    edit_config(folder, **changes)
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(folder)


def test_a_config_that_lacks_ps_version_is_v1_and_refused(folder: Path) -> None:
    raw = json.loads((folder / "config.json").read_text())
    del raw["ps_version"]
    with pytest.raises(CheckpointError, match="ps_version"):
        parse_config(raw)


def _rename(weights: dict[str, torch.Tensor]) -> None:
    weights["language_model.model.norm.wait"] = weights.pop("language_model.model.norm.weight")


def _remove(weights: dict[str, torch.Tensor]) -> None:
    del weights["vision_model.encoder.layers.0.ls1"]


def _reshape(weights: dict[str, torch.Tensor]) -> None:
    weights["mlp1.1.weight"] = weights["mlp1.1.weight"][:, :-1]


def _narrow(weights: dict[str, torch.Tensor]) -> None:
    name = "language_model.model.layers.0.attention.wqkv.weight"
    weights[name] = weights[name][:-1]


def _third(weights: dict[str, torch.Tensor]) -> None:
    name = "vision_model.encoder.layers.0.attn.qkv.weight"
    weights[name] = weights[name][:-1]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (_rename, r"unknown tensor language_model\.model\.norm\.wait"),
        (_remove, r"1 tensors are missing, the first is .*lambda_1"),
        (_reshape, r"linear_1\.weight has shape"),
        (_narrow, "wqkv.weight has shape"),
        (_third, "divide by 3"),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder: Path, edit: Edit, words: str) -> None:
    edit_weights(folder, edit)
    with pytest.raises(CheckpointError, match=words):
        read_all(folder)


def test_a_tensor_in_two_shards_is_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    save_file({"mlp1.0.bias": weights["mlp1.0.bias"]}, folder / "b.safetensors")
    index = {"weight_map": dict.fromkeys(weights, "a.safetensors") | {"mlp1.0.bias": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="doubled"):
        read_all(folder)


@pytest.mark.parametrize("suffix", ["bin", "pt"])
def test_pickled_weights_are_refused(folder: Path, suffix: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / f"pytorch_model.{suffix}").write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match="pickled"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["../model.safetensors", "model.bin", "gone.safetensors"])
def test_an_index_that_names_other_files_is_refused(folder: Path, name: str) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"mlp1.0.bias": name}}))
    with pytest.raises(CheckpointError):
        open_checkpoint(folder)


def test_a_truncated_file_is_refused(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        read_all(folder)


def test_a_file_that_disagrees_with_its_checksum_is_refused(folder: Path) -> None:
    assert open_checkpoint(folder).weights_hash() == open_checkpoint(folder).weights_hash()
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="SHA256SUMS"):
        open_checkpoint(folder).weights_hash()


def test_the_hash_follows_the_weights(folder: Path) -> None:
    before = open_checkpoint(folder).weights_hash()

    def nudge(weights: dict[str, torch.Tensor]) -> None:
        weights["mlp1.0.bias"][0] += 1

    edit_weights(folder, nudge)
    assert open_checkpoint(folder).weights_hash() != before


def test_remote_code_is_never_run(folder: Path, tmp_path: Path) -> None:
    """`auto_map` and Python files lie in the original repository; they are ignored."""
    mark = tmp_path / "ran"
    (folder / "modeling_internvl_chat.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    edit_config(folder, auto_map={"AutoModel": "modeling_internvl_chat.InternVLChatModel"})
    (folder / "SHA256SUMS").unlink()
    load_engine(folder).close()
    assert not mark.exists()


def test_a_tokenizer_of_another_model_is_refused(folder: Path) -> None:
    raw = json.loads((folder / "tokenizer_config.json").read_text())
    raw["added_tokens_decoder"]["99999"] = {"content": "<more>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="do not match"):
        load_engine(folder)


def test_no_folder_no_config_and_broken_json_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a folder"):
        open_checkpoint(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="JSON"):
        read_config(tmp_path)


def test_the_real_models_shape_has_25_billion_parameters() -> None:
    text = {
        "hidden_size": 6144,
        "num_hidden_layers": 48,
        "num_attention_heads": 48,
        "num_key_value_heads": 8,
        "intermediate_size": 16384,
        "vocab_size": 92553,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "rope_scaling": {"type": "dynamic", "factor": 3.0},
    }
    vision = {
        "hidden_size": 3200,
        "num_hidden_layers": 45,
        "num_attention_heads": 25,
        "intermediate_size": 12800,
        "image_size": 448,
        "patch_size": 14,
    }
    raw = {"model_type": "internvl_chat", "ps_version": "v2", "template": "internlm2-chat"}
    config = parse_config({**raw, "llm_config": text, "vision_config": vision})
    assert config.tokens_per_tile == 256
    assert config.vision.tokens == 1025
    assert round(parameter_count(config) / 1e9, 2) == 25.51


def test_names_that_are_not_the_models_have_no_target() -> None:
    assert target("vision_model.encoder.layers.0.attn.bias") is None
    assert target("language_model.model.layers.0.attention.wq.weight") is None
    assert target("lm_head.weight") is None
