"""Every snippet of the model card, on the tiny checkpoint: same calls, same semantics."""

from __future__ import annotations

import queue
from threading import Thread

import numpy as np
import pytest
import torch

from pipelines.engine.chat import ChatModel, TextIteratorStreamer
from pipelines.engine.errors import BadRequest, UnknownOption
from pipelines.engine.service import LocalEngine
from pipelines.engine.vision import MEAN, STD
from tests.unit.engine.conftest import tiles

GENERATION = {"max_new_tokens": 12, "do_sample": False}
IMAGE_1, IMAGE_2 = tiles(3, seed=1).pixels, tiles(2, seed=2).pixels


@pytest.fixture(scope="module")
def model(engine: LocalEngine) -> ChatModel:
    return ChatModel(engine)


def test_pure_text_conversation(model: ChatModel) -> None:
    response, history = model.chat(None, None, "Hello, who are you?", GENERATION, history=None, return_history=True)
    assert history == [("Hello, who are you?", response)]
    second, history = model.chat(None, None, "Tell me a story.", GENERATION, history=history, return_history=True)
    assert history[1] == ("Tell me a story.", second)
    assert second != model.chat(None, None, "Tell me a story.", GENERATION), "the history is part of the prompt"


def test_single_image_single_and_multi_round_conversation(model: ChatModel) -> None:
    question = "<image>\nPlease describe the image in detail."
    single = model.chat(None, IMAGE_1, question, GENERATION)
    response, history = model.chat(None, IMAGE_1, question, GENERATION, history=None, return_history=True)
    assert response == single
    poem, history = model.chat(None, IMAGE_1, "Write a poem.", GENERATION, history=history, return_history=True)
    assert [turn[0] for turn in history] == [question, "Write a poem."]
    assert poem


def test_a_question_without_placeholder_gets_one_and_the_history_says_so(model: ChatModel) -> None:
    with_it = model.chat(None, IMAGE_1, "<image>\nWhat?", GENERATION)
    without, history = model.chat(None, IMAGE_1, "What?", GENERATION, return_history=True)
    assert without == with_it
    assert history[0][0] == "<image>\nWhat?"


def test_combined_images_are_one_image(model: ChatModel) -> None:
    both = np.concatenate([IMAGE_1, IMAGE_2])
    response, history = model.chat(
        None, both, "<image>\nDescribe the two.", GENERATION, history=None, return_history=True
    )
    second, _ = model.chat(None, both, "What is alike?", GENERATION, history=history, return_history=True)
    assert response
    assert second


def test_separate_images_take_their_own_placeholders(model: ChatModel) -> None:
    both, counts = np.concatenate([IMAGE_1, IMAGE_2]), [len(IMAGE_1), len(IMAGE_2)]
    question = "Image-1: <image>\nImage-2: <image>\nDescribe the two."
    response, history = model.chat(None, both, question, GENERATION, num_patches_list=counts, return_history=True)
    turned = np.concatenate([IMAGE_2, IMAGE_1])
    assert model.chat(None, turned, question, GENERATION, num_patches_list=counts[::-1]) != response
    second, _ = model.chat(
        None, both, "What is alike?", GENERATION, num_patches_list=counts, history=history, return_history=True
    )
    assert second


def test_batch_inference_equals_one_by_one(model: ChatModel) -> None:
    both, counts = np.concatenate([IMAGE_1, IMAGE_2]), [len(IMAGE_1), len(IMAGE_2)]
    questions = ["<image>\nDescribe the image in detail."] * 2
    responses = model.batch_chat(None, both, num_patches_list=counts, questions=questions, generation_config=GENERATION)
    assert responses == [model.chat(None, image, questions[0], GENERATION) for image in (IMAGE_1, IMAGE_2)]


def test_a_batch_has_chat_semantics_for_every_sample(model: ChatModel) -> None:
    """Many images and a history in one sample: what the original's batch_chat cannot do."""
    both = np.concatenate([IMAGE_1, IMAGE_2, IMAGE_2])
    past = [[], [("<image>\nFirst?", "Yes.")]]
    responses, histories = model.batch_chat(
        None,
        both,
        questions=["A <image> and a <image>", "Second?"],
        generation_config=GENERATION,
        num_patches_list=[[3, 2], 2],
        history=past,
        return_history=True,
    )
    two = np.concatenate([IMAGE_1, IMAGE_2])
    assert responses[0] == model.chat(None, two, "A <image> and a <image>", GENERATION, num_patches_list=[3, 2])
    assert responses[1] == model.chat(None, IMAGE_2, "Second?", GENERATION, history=past[1])
    assert histories[1] == [*past[1], ("Second?", responses[1])]


def test_video_multi_round_conversation(model: ChatModel) -> None:
    frames = tiles(*[1] * 8, seed=3).pixels
    prefix = "".join(f"Frame{i + 1}: <image>\n" for i in range(8))
    counts = [1] * 8
    response, history = model.chat(
        None, frames, prefix + "What is the panda doing?", GENERATION, num_patches_list=counts, return_history=True
    )
    second, _ = model.chat(
        None, frames, "Don't repeat.", GENERATION, num_patches_list=counts, history=history, return_history=True
    )
    assert response
    assert second


def test_streaming_output(model: ChatModel) -> None:
    streamer = TextIteratorStreamer(None, skip_prompt=True, skip_special_tokens=True, timeout=10)
    config = {**GENERATION, "streamer": streamer}
    arguments = {"tokenizer": None, "pixel_values": IMAGE_1, "question": "What?", "generation_config": config}
    thread = Thread(target=model.chat, kwargs={**arguments, "history": None, "return_history": False})
    thread.start()
    generated_text = ""
    for new_text in streamer:
        if new_text == model.conv_template.sep:
            break
        generated_text += new_text
    thread.join()
    assert generated_text == model.chat(None, IMAGE_1, "What?", GENERATION)


def test_a_streamer_that_gets_nothing_times_out() -> None:
    with pytest.raises(queue.Empty):
        next(iter(TextIteratorStreamer(timeout=0.01)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cards_normalised_floats_are_the_same_pixels(model: ChatModel, dtype: torch.dtype) -> None:
    floats = (torch.from_numpy(IMAGE_1).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    floats = floats.permute(0, 3, 1, 2).to(dtype)
    assert model.chat(None, floats, "What?", GENERATION) == model.chat(None, IMAGE_1, "What?", GENERATION)


def test_misuse_is_refused(model: ChatModel) -> None:
    with pytest.raises(UnknownOption):
        model.chat(None, None, "Hi", {"num_beams": 2})
    with pytest.raises(BadRequest):
        model.chat(None, IMAGE_1, "Hi", GENERATION, num_patches_list=[1])
    with pytest.raises(BadRequest):
        model.batch_chat(None, IMAGE_1, ["Hi"], GENERATION)
    with pytest.raises(BadRequest):
        model.batch_chat(None, None, ["Hi"], GENERATION, history=[])
    with pytest.raises(BadRequest):
        model.chat(None, torch.zeros(1, 3, 9, 9), "Hi", GENERATION)
