from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.engine.errors import BadRequest, EmptyPrompt
from pipelines.engine.prompt import build_parts, encode, video_prefix, with_placeholders
from pipelines.engine.tokenizer import Part, Special, read_tokenizer

SYSTEM = "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"


def written(parts: list[Part]) -> str:
    return "".join(part if isinstance(part, str) else part.name * part.count for part in parts)


def test_the_prompt_of_one_question_to_the_character() -> None:
    parts = build_parts("Hello?", history=(), counts=(), tokens_per_tile=256)
    assert written(parts) == (
        f"<s><|im_start|>system\n{SYSTEM}<|im_end|><|im_start|>user\nHello?<|im_end|><|im_start|>assistant\n"
    )


def test_the_prompt_of_a_second_turn_with_an_image_in_the_first() -> None:
    history = [("<image>\nWhat?", "A <image>.")]
    parts = build_parts("And?", history=history, counts=(2,), tokens_per_tile=3, system="S")
    assert written(parts) == (
        "<s><|im_start|>system\nS<|im_end|><|im_start|>user\n<img>" + "<IMG_CONTEXT>" * 6 + "</img>\nWhat?<|im_end|>"
        "<|im_start|>assistant\nA <image>.<|im_end|><|im_start|>user\nAnd?<|im_end|><|im_start|>assistant\n"
    )


def test_images_take_the_placeholders_in_order() -> None:
    parts = build_parts("a <image> b <image> c", history=(), counts=(1, 2), tokens_per_tile=1, system="")
    assert [part.count for part in parts if isinstance(part, Special) and part.name == "<IMG_CONTEXT>"] == [1, 2]


def test_a_question_without_placeholder_gets_one_before_the_first_turn() -> None:
    assert with_placeholders(["What?"], 1) == ("<image>\nWhat?",)
    assert with_placeholders(["First", "Second"], 2) == ("<image>\n<image>\nFirst", "Second")
    assert with_placeholders(["First", "Second <image>"], 1) == ("First", "Second <image>")
    assert with_placeholders(["What?"], 0) == ("What?",)


def test_a_surplus_placeholder_stays_text_and_a_surplus_image_is_refused() -> None:
    assert "c <image>" in written(build_parts("<image> c <image>", history=(), counts=(1,), tokens_per_tile=1))
    assert "x <image>" in written(build_parts("x <image>", history=(), counts=(), tokens_per_tile=1))
    with pytest.raises(BadRequest):
        build_parts("<image>", history=(), counts=(1, 1), tokens_per_tile=1)
    with pytest.raises(BadRequest):
        build_parts("<image>", history=(), counts=(0,), tokens_per_tile=1)


def test_an_image_alone_is_a_question_but_nothing_is_not() -> None:
    assert build_parts("", history=(), counts=(1,), tokens_per_tile=1)
    with pytest.raises(EmptyPrompt):
        build_parts(" ", history=(("a", "b"),), counts=(), tokens_per_tile=1)


def test_the_video_prefix() -> None:
    assert video_prefix(2) == "Frame1: <image>\nFrame2: <image>\n"


def test_the_spans_are_the_visual_tokens_of_each_image(checkpoint: Path) -> None:
    tokenizer = read_tokenizer(checkpoint)
    parts = build_parts(video_prefix(2) + "Why?", history=(), counts=(1, 3), tokens_per_tile=4)
    prompt = encode(tokenizer, parts)
    assert [span.end - span.start for span in prompt.spans] == [4, 12]
    for span in prompt.spans:
        assert set(prompt.ids[span.start : span.end]) == {tokenizer.image_token}
        assert prompt.ids[span.start - 1] == tokenizer.special["<img>"]
        assert prompt.ids[span.end] == tokenizer.special["</img>"]
    assert prompt.ids[0] == 1
