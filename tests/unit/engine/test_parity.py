"""The engine computes what the original code computes: the recorded reference, and the plain model anywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipelines.engine.check import CheckReport, check_checkpoint
from pipelines.engine.service import LocalEngine
from pipelines.engine.types import EngineRequest, GenerationParams
from pipelines.engine.vision import MEAN, STD
from tests.unit.engine.conftest import tiles
from tests.unit.engine.plain_model import PlainModel


@pytest.fixture(scope="module")
def report(reference: Path) -> CheckReport:
    return check_checkpoint(reference, against=reference / "reference.safetensors")


@pytest.mark.parametrize("name", ["vit_last_hidden", "vit_embeds", "logits", "text_logits"])
def test_the_engine_meets_the_recorded_tensors(report: CheckReport, reference: Path, name: str) -> None:
    scale = float(load_file(reference / "reference.safetensors")[name].abs().max())
    # The record is float32, the engine runs in float64: what remains is the record's own rounding.
    assert report.differences[name] < 1e-5 * max(scale, 1.0)


@pytest.mark.parametrize("name", ["gen_single", "gen_batch", "gen_batch_rp", "gen_text"])
def test_the_engine_meets_the_recorded_greedy_tokens(report: CheckReport, name: str) -> None:
    assert report.equal_tokens[name] == 1.0


@pytest.mark.parametrize("name", ["vit_last_hidden", "vit_embeds", "logits", "text_logits"])
def test_the_plain_model_meets_the_recorded_tensors(reference: Path, name: str) -> None:
    record = load_file(reference / "reference.safetensors")
    plain = PlainModel(reference)
    hidden = plain.vision(record["pixel_values"])
    visual = plain.project(hidden)
    if name == "text_logits":
        mine = [plain.text(plain.embed(record["text_ids"][0].tolist(), None, 200))]
        wanted = [record["text_logits"][0]]
    elif name == "logits":
        mine, wanted, at = [], [], 0
        for row, keep in enumerate(record["attention_mask"].bool()):
            ids = record["input_ids"][row][keep].tolist()
            count = ids.count(200) // visual.shape[1]
            mine.append(plain.text(plain.embed(ids, visual[at : at + count], 200)))
            wanted.append(record["logits"][row][keep])
            at += count
    else:
        mine, wanted = [hidden if name == "vit_last_hidden" else visual], [record[name]]
    for found, right in zip(mine, wanted, strict=True):
        assert float((found - right.double()).abs().max()) < 1e-5 * max(float(right.abs().max()), 1.0)


@pytest.fixture(scope="module")
def plain(checkpoint: Path) -> PlainModel:
    return PlainModel(checkpoint)


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("counts", [(), (1,), (3,), (2, 1)])
def test_answers_equal_the_plain_model(
    engine: LocalEngine, plain: PlainModel, counts: tuple[int, ...], penalty: float
) -> None:
    media = tiles(*counts, seed=3) if counts else None
    question = "".join("<image>\n" for _ in counts) + "What is this?"
    params = GenerationParams(max_new_tokens=12, repetition_penalty=penalty)
    request = EngineRequest(request_id="r", question=question, media=media, params=params)
    answer = engine.submit(request).future.result(60)
    ids, visual = _prompt(engine, question, counts), None
    if media is not None:
        pixels = (torch.from_numpy(media.pixels).double() / 255 - torch.tensor(MEAN).double()) / torch.tensor(
            STD
        ).double()
        visual = plain.project(plain.vision(pixels.permute(0, 3, 1, 2)))
    tokenizer = engine.tokenizer
    wanted = plain.greedy(ids, visual, tokenizer.image_token, count=12, penalty=penalty, stop=tokenizer.stop_token)
    assert list(answer.token_ids) == wanted
    assert answer.prompt_tokens == len(ids)


def _prompt(engine: LocalEngine, question: str, counts: tuple[int, ...]) -> list[int]:
    """The prompt written out by hand, apart from the code that writes it."""
    special, encode = engine.tokenizer.special, engine.tokenizer.encode
    system = (
        "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
    )
    ids = [special["<s>"], special["<|im_start|>"], *encode(["system\n" + system]), special["<|im_end|>"]]
    ids += [special["<|im_start|>"]]
    for number, text in enumerate(question.split("<image>")):
        if number:
            context = [special["<IMG_CONTEXT>"]] * (4 * counts[number - 1])
            ids += [special["<img>"], *context, special["</img>"]]
        ids += encode([("user\n" if not number else "") + text])
    return [*ids, special["<|im_end|>"], special["<|im_start|>"], *encode(["assistant\n"])]


def test_a_native_checkpoint_answers_like_its_original(
    checkpoint: Path, engine: LocalEngine, start: Callable[..., LocalEngine], tmp_path: Path
) -> None:
    from pipelines.engine.convert import convert_checkpoint

    names = convert_checkpoint(checkpoint, tmp_path / "native", shard_bytes=200_000)
    assert len(names) > 1
    native = start(tmp_path / "native")
    request = EngineRequest(
        request_id="r", question="Read it.", media=tiles(2, seed=5), params=GenerationParams(max_new_tokens=20)
    )
    first, second = engine.submit(request).future.result(60), native.submit(request).future.result(60)
    assert first.token_ids == second.token_ids
    assert native.info.trained is False


def test_a_converted_checkpoint_loads_with_transformers_alone(checkpoint: Path, tmp_path: Path) -> None:
    from transformers import InternVLForConditionalGeneration

    from pipelines.engine.convert import convert_checkpoint

    convert_checkpoint(checkpoint, tmp_path / "native")
    loaded: Any = InternVLForConditionalGeneration.from_pretrained(tmp_path / "native", output_loading_info=True)
    model, report = loaded
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert sum(weight.numel() for weight in model.parameters()) == check_checkpoint(checkpoint).parameters
