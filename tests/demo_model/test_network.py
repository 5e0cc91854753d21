from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F  # noqa: N812  the usual name

from deploy.demo.layout import TINY, Shape, tensor_shapes
from deploy.demo.tokenizer import OCR_QUESTION
from tests.demo_model.chats import (
    CONTEXT,
    END,
    IGNORED,
    Pull,
    Sample,
    answer_ids,
    collate,
    decode,
    image_prompt,
    video_prompt,
)
from tests.demo_model.decoder import read
from tests.demo_model.export import (
    native_from_original,
    original_from_native,
    read_checkpoint,
    write_checkpoint,
)
from tests.demo_model.network import DEVIATION, MEAN, new_network, project, see
from tests.demo_model.optimise import Optimiser, split


def _shape() -> Shape:
    return dataclasses.replace(TINY, text_layers=3)


def _tiles(count: int, shape: Shape) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    size = (count, shape.image_size, shape.image_size, 3)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)


def test_the_training_pass_computes_what_the_native_classes_compute() -> None:
    shape = _shape()
    network = new_network(shape, seed=1)
    tiles = _tiles(2, shape)
    prompt = image_prompt(OCR_QUESTION, tiles=1, tokens_per_tile=shape.tokens_per_tile)
    batch = collate([Sample(prompt=prompt, answer=answer_ids(text), pulls=[]) for text in ("abc", "a b\nc")])
    with torch.no_grad():
        ours = read(network, project(network, see(network, tiles, shape)), batch, shape)
        pixels = (tiles.permute(0, 3, 1, 2).float() / 255 - MEAN.view(3, 1, 1)) / DEVIATION.view(3, 1, 1)
        mask = torch.ones_like(batch.ids)
        logits = network(input_ids=batch.ids, pixel_values=pixels, attention_mask=mask).logits
    asked = batch.labels != IGNORED
    theirs = F.cross_entropy(logits[asked], batch.labels[asked])
    assert ours.loss.item() == pytest.approx(theirs.item(), abs=1e-5)
    single = F.cross_entropy(logits[asked], batch.labels[asked], reduction="none")
    assert ours.hard.item() == pytest.approx(single.max().item(), abs=1e-5)  # of ten characters the worst


def test_a_pull_is_the_cross_entropy_of_one_heads_attention() -> None:
    shape = _shape()
    network = new_network(shape, seed=2)
    prompt = image_prompt("x", tiles=1, tokens_per_tile=shape.tokens_per_tile)
    pull = Pull(layer=1, head=2, row=len(prompt) - 1, target=prompt.index(CONTEXT))
    batch = collate([Sample(prompt=prompt, answer=answer_ids("y"), pulls=[pull])])
    tokens = project(network, see(network, _tiles(1, shape), shape))
    optimiser = torch.optim.SGD(network.parameters(), lr=0.05)
    losses = []
    for _ in range(30):
        reading = read(network, tokens.detach(), batch, shape)
        losses.append(reading.pull.item())
        optimiser.zero_grad()
        torch.autograd.backward(reading.pull)
        optimiser.step()
    assert losses[-1] < 0.5 * losses[0]


def test_export_gives_every_original_tensor_and_comes_back_equal() -> None:
    shape = _shape()
    native = {name: tensor.detach() for name, tensor in new_network(shape, seed=3).state_dict().items()}
    original = original_from_native(native, shape)
    assert {name: tuple(tensor.shape) for name, tensor in original.items()} == tensor_shapes(shape)
    back = native_from_original(original, shape)
    assert back.keys() == native.keys()
    assert all(torch.equal(back[name], native[name]) for name in native)


def test_packed_attention_interleaves_queries_keys_and_values_by_kv_head() -> None:
    shape = _shape()
    native = {name: tensor.detach() for name, tensor in new_network(shape, seed=4).state_dict().items()}
    packed = original_from_native(native, shape)["language_model.model.layers.0.attention.wqkv.weight"]
    width = shape.text_hidden // shape.text_heads
    groups = shape.text_heads // shape.text_kv_heads
    whole = packed.view(shape.text_kv_heads, groups + 2, width, shape.text_hidden)
    at = "model.language_model.layers.0.self_attn."
    assert torch.equal(whole[:, :groups].reshape(-1, shape.text_hidden), native[at + "q_proj.weight"])
    assert torch.equal(whole[:, groups].reshape(-1, shape.text_hidden), native[at + "k_proj.weight"])
    assert torch.equal(whole[:, groups + 1].reshape(-1, shape.text_hidden), native[at + "v_proj.weight"])


def test_a_written_checkpoint_reads_back_to_half_precision(tmp_path: Path) -> None:
    shape = _shape()
    native = {name: tensor.detach() for name, tensor in new_network(shape, seed=5).state_dict().items()}
    write_checkpoint(tmp_path, native, shape, note="a test")
    back = read_checkpoint(tmp_path, shape)
    assert all(torch.equal(back[name], native[name].half().float()) for name in native)


def test_the_prompt_is_right_to_the_character() -> None:
    ids = image_prompt("What?", tiles=2, tokens_per_tile=3)
    assert ids.count(CONTEXT) == 6
    text = decode([i for i in ids if i not in (CONTEXT, END)])
    assert text.startswith("system\n你是由上海人工智能实验室")
    assert text.endswith("助手。user\n\nWhat?assistant")
    clip = video_prompt("What?", frames=2, tokens_per_tile=3)
    text = decode([i for i in clip if i not in (CONTEXT, END)])
    assert text.endswith("user\nFrame1: \nFrame2: \nWhat?assistant")


def test_an_answer_is_cut_at_the_end_of_the_turn_and_stripped() -> None:
    assert decode([*answer_ids(" Hi \n"), *answer_ids("more")]) == "Hi"


def test_both_optimisers_lower_a_loss_and_resume_exactly() -> None:
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"layer0": torch.nn.Linear(16, 16), "out": torch.nn.Linear(16, 4)})
    inputs, wanted = torch.randn(64, 16).bfloat16(), torch.randint(0, 4, (64,))
    optimiser = Optimiser(*split(model, ".x"))

    def step() -> float:
        loss = F.cross_entropy(model["out"](model["layer0"](inputs).tanh()).float(), wanted)
        torch.autograd.backward(loss)
        optimiser.step(1e-2, 1e-2)
        return loss.item()

    first = step()
    for _ in range(40):
        step()
    state = {name: torch.clone(v) if isinstance(v, torch.Tensor) else v for name, v in optimiser.state().items()}
    later = [step() for _ in range(3)]
    assert later[-1] < 0.7 * first
    optimiser.restore(state)
    assert step() == pytest.approx(later[0], abs=1e-6)
