"""OpenAI's messages and batch files become parameters of the kind `chat`."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
        "top_p": 0.9,
        "seed": 3,
        "stop": ["x"],
        "max_new_tokens": 7,
    }
    assert converted({"role": "user", "content": [image(DATA)]}, max_tiles=3).parameters["max_tiles"] == 3
    low = {"type": "image_url", "image_url": {"url": DATA, "detail": "low"}}
    assert converted({"role": "user", "content": [low]}).parameters["max_tiles"] == 1


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
