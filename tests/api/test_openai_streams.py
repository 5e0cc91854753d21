"""Streams and broken-off requests: nothing is said twice, errors are raised, a client that leaves frees its slot."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from openai import OpenAI

from pipelines.engine.errors import RequestCancelled
from pipelines.engine.fake import FakeOptions
from pipelines.settings import Settings
from tests.api.chats import MODEL, StumblingEngine, WatchedEngine, sdk_of, user, words
from tests.api.conftest import Served
from tests.api.worker_thread import working_with

PATIENCE = 60.0


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Heartbeats are rare: whatever happens within a test's time was told by a hint."""
    return settings.model_copy(update={"heartbeat_seconds": 600.0, "lease_seconds": 1_800.0})


@pytest.fixture
def sdk(api: Served) -> Iterator[OpenAI]:
    with sdk_of(api, timeout=PATIENCE) as made:
        yield made


def until(condition: Callable[[], Any]) -> None:
    wait = threading.Event()
    for _ in range(int(PATIENCE / 0.05)):
        if condition():
            return
        wait.wait(0.05)
    raise AssertionError("it never happened")


def test_a_retried_attempt_never_repeats_text(api: Served, sdk: OpenAI) -> None:
    with working_with(StumblingEngine(times=2, for_good=False), api.settings, api.database) as engine:
        stream = sdk.chat.completions.create(
            model=MODEL,
            messages=[user(words("Say it"))],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
        whole = engine.handles[-1].future.result()
    said = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(said) == whole.text
    assert len(chunks[0].id) > 10
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.prompt_tokens


def test_an_error_in_the_middle_is_raised_after_what_was_said(api: Served, sdk: OpenAI) -> None:
    said: list[str] = []

    def listen() -> None:
        stream = sdk.chat.completions.create(model=MODEL, messages=[user(words("Say it"))], stream=True)
        said.extend(chunk.choices[0].delta.content or "" for chunk in stream)

    with (
        working_with(StumblingEngine(times=1, for_good=True), api.settings, api.database),
        pytest.raises(openai.APIError) as caught,
    ):
        listen()
    assert len("".join(said).split()) == 3
    assert caught.value.code is not None
    assert "half way" in caught.value.message


def test_a_stream_without_usage_has_none_and_ends_with_done(api: Served) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Say it"}], "stream": True}
    with working_with(WatchedEngine(), api.settings, api.database), api.http() as http:
        answer = http.post("/v1/chat/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [event for event in answer.text.split("\n\n") if event]
    assert events[-1] == "data: [DONE]"
    assert all(event.startswith("data: {") and '"usage"' not in event for event in events[:-1])


@pytest.mark.parametrize("streaming", [True, False])
def test_a_client_that_leaves_frees_the_engines_slot(api: Served, sdk: OpenAI, *, streaming: bool) -> None:
    slow = WatchedEngine(FakeOptions(slots=1, seconds_a_token=300.0))
    with working_with(slow, api.settings, api.database, hints=True) as engine:
        if streaming:
            stream = sdk.chat.completions.create(model=MODEL, messages=[user(words("Never"))], stream=True)
            next(iter(stream))
            until(lambda: engine.stats().running == 1)
            stream.close()
        else:
            leave = threading.Event()
            asking = threading.Thread(target=_ask_and_leave, args=(api, leave))
            asking.start()
            until(lambda: engine.stats().running == 1)
            leave.set()
            asking.join(PATIENCE)
        until(lambda: engine.stats().running == 0)
        assert engine.stats().waiting == 0
        assert engine.stats().generated_tokens == 0
        assert isinstance(engine.handles[0].future.exception(timeout=0), RequestCancelled)
        with api.client() as client:
            (job,) = client.jobs(kind="chat")
            assert client.wait(job.id, timeout=PATIENCE).state == "cancelled"


@pytest.mark.parametrize("streaming", [True, False])
def test_a_client_that_leaves_before_its_answer_begins_leaves_no_work(api: Served, *, streaming: bool) -> None:
    leave = threading.Event()
    leave.set()
    _ask_and_leave(api, leave, streaming=streaming)
    with api.client() as client:
        until(lambda: list(client.jobs(kind="chat")))
        (job,) = client.jobs(kind="chat")
        assert client.wait(job.id, timeout=PATIENCE).state == "cancelled"


def _ask_and_leave(api: Served, leave: threading.Event, *, streaming: bool = False) -> None:
    """Close the connection when told to: as a user's Ctrl-C, or a proxy's time-out."""
    where = urlsplit(api.url)
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "Never"}], "stream": streaming}
    body = json.dumps(asked).encode()
    with socket.create_connection((str(where.hostname), where.port or 80)) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            + f"Authorization: Bearer {api.caller.key}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        leave.wait(PATIENCE)
