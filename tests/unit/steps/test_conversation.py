"""OpenAI's messages and batch files become parameters of the kind `chat`."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipelines.jobs.errors import InvalidParameter
from pipelines.kinds import registry
from pipelines.kinds.base import MediaClass, MediumView
from pipelines.steps.batch_file import BatchLine, chat_request_of, check_batch, read_batch
from pipelines.steps.chat_request import ChatRequest
from pipelines.steps.conversation import Conversation, InlineMedium, conversation_of

DATA = "data:image/png;base64," + base64.b64encode(b"bytes").decode()
ENDPOINT = "/v1/chat/completions"


def converted(*messages: dict[str, Any], **options: Any) -> Conversation:
    return conversation_of(
        ChatRequest.model_validate_json(json.dumps({"model": "m", "messages": list(messages), **options}))
    )


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def test_media_stand_where_they_were_named() -> None:
    made = converted(
        {"role": "user", "content": [image("s3://b/1.png"), {"type": "text", "text": "and"}, image(DATA)]},
        {"role": "assistant", "content": "Two pictures."},
        {"role": "user", "content": "Which is larger? <image>"},
    )
    assert made.media[0] == "s3://b/1.png"
    assert made.media[1] == InlineMedium(name="inline-1.png", mime="image/png", data=b"bytes")
    chat = registry.get("chat")
    views = (MediumView(media_class=MediaClass.IMAGE), MediumView(media_class=MediaClass.IMAGE))
    dialogue = chat.dialogue(chat.parse_parameters(made.parameters), views)
    assert dialogue.history[0][0].count("<image>") == 2
    assert "<image>" not in dialogue.questions[0]  # text that spells a mark stays text


def test_neighbours_of_one_role_become_one_turn() -> None:
    made = converted({"role": "user", "content": "a"}, {"role": "user", "content": "b"})
    (turn,) = made.parameters["messages"]
    assert "".join(part["text"] for part in turn["content"]) == "a\nb"


def test_decoding_options_are_carried_over_and_greedy_without_a_temperature() -> None:
    def generation(**options: Any) -> dict[str, Any]:
        found: dict[str, Any] = converted({"role": "user", "content": "?"}, **options).parameters["generation"]
        return found

    assert generation() == {}
    assert generation(temperature=0) == {}
    assert generation(temperature=0.5, top_p=0.9, seed=3, stop="x", max_tokens=7) == {
        "do_sample": True,
        "temperature": 0.5,
        "top_k": 0,
        "top_p": 0.9,
        "seed": 3,
        "stop": ["x"],
        "max_new_tokens": 7,
    }
    assert generation(top_p=1, temperature=None) == {"top_p": 1}
    assert generation(top_p=0.5)["do_sample"] is True
    assert generation(top_k=9) == {"do_sample": True, "temperature": 1.0, "top_k": 9}
    assert "do_sample" not in generation(top_p=0.5, temperature=0)
    assert generation(max_tokens=7, max_completion_tokens=9) == {"max_new_tokens": 9}


def tiles(*details: str | None, **options: Any) -> tuple[int, tuple[int, ...]]:
    """What the kind makes of images of these details; None is a video."""
    video = {"type": "video_url", "video_url": {"url": "s3://b/clip.mp4"}}
    parts = [
        video if detail is None else {"type": "image_url", "image_url": {"url": DATA, "detail": detail}}
        for detail in details
    ]
    chat = registry.get("chat")
    made = converted({"role": "user", "content": [*parts, {"type": "text", "text": "?"}]}, **options)
    preprocessing = chat.preprocessing(chat.parse_parameters(made.parameters))
    return preprocessing.max_tiles, preprocessing.media_tiles


def test_the_detail_of_each_image_decides_its_tiles() -> None:
    assert tiles("auto") == (12, ())
    assert tiles("auto", "high", max_tiles=3) == (3, ())
    assert tiles("low", "low", max_tiles=3) == (1, ())
    assert tiles("low", "high") == (12, (1, 12))
    assert tiles("high", "low", None, max_tiles=40) == (40, (40, 1, 1))


def sampling(url: str, **video: Any) -> tuple[int, float | None, int]:
    """Segments, rate, and how many media there are."""
    part = {"type": "video_url", "video_url": {"url": url}}
    made = converted(
        {"role": "user", "content": [part, {"type": "text", "text": "?"}]}, media_io_kwargs={"video": video}
    )
    chat = registry.get("chat")
    preprocessing = chat.preprocessing(chat.parse_parameters(made.parameters))
    return preprocessing.num_segments, preprocessing.fps, len(made.media)


def test_a_video_is_sampled_by_number_or_by_rate() -> None:
    clip, frames = "s3://b/clip.mp4", "data:video/jpeg;base64," + ",".join(["anBlZw=="] * 6)
    assert sampling(clip) == (32, None, 1)
    assert sampling(clip, num_frames=8) == (8, None, 1)
    assert sampling(clip, fps=0.5) == (32, 0.5, 1)
    assert sampling(clip, fps=2, num_frames=-1) == (2_048, 2.0, 1)
    assert sampling(frames)[2] == 6
    assert sampling(frames, num_frames=-1)[2] == 6
    assert sampling(frames, num_frames=3)[2] == 3
    with pytest.raises(InvalidParameter) as caught:
        sampling(clip, num_frames=-1)
    assert caught.value.param == "media_io_kwargs.video.num_frames"
    with pytest.raises(InvalidParameter) as caught:
        sampling(frames, fps=2)
    assert caught.value.param == "media_io_kwargs.video.fps"


@pytest.mark.parametrize(
    "options",
    [
        {"n": 2},
        {"stream_options": {"include_usage": True}},
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        {"store": True},
        {"stop": ["x"] * 9},
        {"stop": ""},
        {"logprobs": True},
        {"presence_penalty": 0.5},
        {"tools": []},
        {"metadata": {"name": 1}},
        {"media_io_kwargs": {"video": {"num_frames": 0}}},
        {"media_io_kwargs": {"audio": {}}},
    ],
)
def test_what_cannot_be_done_is_refused_not_dropped(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        converted({"role": "user", "content": "?"}, **options)
    assert next(iter(options)) in str(caught.value)


def test_joined_frames_are_written_as_the_card_does() -> None:
    frame = base64.b64encode(b"jpeg").decode()
    video = {"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{frame},{frame}"}}
    made = converted({"role": "user", "content": [video, {"type": "text", "text": "What happens?"}]})
    chat = registry.get("chat")
    views = (MediumView(media_class=MediaClass.IMAGE),) * 2
    dialogue = chat.dialogue(chat.parse_parameters(made.parameters), views)
    assert dialogue.questions == ("Frame1: <image>\nFrame2: <image>\nWhat happens?",)


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "data:image/png;base64,%%", "data:image/png,abc", "x", DATA[:22]]
)
def test_urls_that_are_no_medium_are_named(url: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        converted({"role": "user", "content": [image(url)]})
    assert caught.value.param == "messages.0.content.0.image_url.url"


def request_line(custom_id: str) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": "?"}]}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body}).encode()


@given(count=st.integers(0, 8), cut=st.integers(1, 200))
def test_a_batch_file_is_read_alike_however_it_is_cut(count: int, cut: int) -> None:
    whole = b"\n\n".join(request_line(f"id-{number}") for number in range(count))
    chunks = [whole[start : start + cut] for start in range(0, len(whole), cut)]
    found = list(read_batch(chunks))
    assert [line.custom_id for line in found if isinstance(line, BatchLine)] == [f"id-{n}" for n in range(count)]
    assert [line.number for line in found] == [1 + 2 * number for number in range(count)]
    checked = check_batch(chunks, endpoint=ENDPOINT, model="m")
    assert checked.lines == count
    assert [problem.code for problem in checked.problems] == ([] if count else ["empty_file"])


@given(st.binary(max_size=200))
def test_any_bytes_end_in_lines_or_problems(data: bytes) -> None:
    checked = check_batch([data], endpoint=ENDPOINT, model="m")
    assert checked.problems


def test_a_body_that_streams_or_is_misspelt_fails_by_itself() -> None:
    message = {"role": "user", "content": "?"}
    bodies: list[tuple[dict[str, Any], str]] = [
        ({"model": "m", "messages": [message], "stream": True}, "body.stream"),
        ({"model": "m", "messages": [message], "max_token": 3}, "body.max_token"),
        ({"model": "m", "messages": []}, "body.messages"),
    ]
    for body, param in bodies:
        with pytest.raises(InvalidParameter) as caught:
            chat_request_of(body)
        assert caught.value.param == param
