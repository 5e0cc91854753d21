"""The unmodified `openai` package against the served api, with real workers over the deterministic engine."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Iterator

import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam
from PIL import Image

from pipelines.engine.fake import FakeEngine
from tests.api.conftest import Served, add_caller, serving
from tests.api.worker_thread import working

MODEL = "internvl-chat-v1-5"


def png(colour: str) -> str:
    out = io.BytesIO()
    Image.new("RGB", (60, 40), colour).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def ask(*parts: str) -> list[ChatCompletionMessageParam]:
    """One user message of texts and (data or other) image URLs."""
    content: list[dict[str, object]] = [
        {"type": "image_url", "image_url": {"url": part}} if ":" in part[:8] else {"type": "text", "text": part}
        for part in parts
    ]
    return [{"role": "user", "content": content}]  # type: ignore[list-item,misc]  # built by hand, as a user would


@pytest.fixture
def sdk(api: Served) -> Iterator[OpenAI]:
    with OpenAI(
        base_url=f"{api.url}/v1", api_key=api.caller.key, max_retries=0, _strict_response_validation=True
    ) as made:
        yield made


@pytest.fixture
def engine(api: Served) -> Iterator[FakeEngine]:
    with working(api.settings, api.database) as made:
        yield made


def test_models(sdk: OpenAI) -> None:
    assert [model.id for model in sdk.models.list()] == [MODEL]
    assert sdk.models.retrieve(MODEL).owned_by == "batchsight"
    with pytest.raises(openai.NotFoundError):
        sdk.models.retrieve("gpt-4o")


def test_files(sdk: OpenAI) -> None:
    made = sdk.files.create(
        file=("scan.png", b"bytes"), purpose="vision", expires_after={"anchor": "created_at", "seconds": 7200}
    )
    assert (made.object, made.bytes, made.purpose, made.status) == ("file", 5, "vision", "uploaded")
    others = [sdk.files.create(file=(f"{n}.png", bytes([n])), purpose="user_data").id for n in range(5)]
    assert sdk.files.retrieve(made.id) == made
    assert sdk.files.content(made.id).read() == b"bytes"
    assert [file.id for file in sdk.files.list(limit=2)] == [*reversed(others), made.id]  # the SDK pages by itself
    assert [file.id for file in sdk.files.list(purpose="vision", order="asc")] == [made.id]
    assert sdk.files.delete(made.id).deleted is True
    with pytest.raises(openai.NotFoundError) as caught:
        sdk.files.retrieve(made.id)
    assert caught.value.code == "not_found"


def test_a_text_is_answered(sdk: OpenAI, engine: FakeEngine) -> None:
    answer = sdk.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "system", "content": "Answer in one word."},
            {"role": "user", "content": "What is 1 + 1?"},
            {"role": "assistant", "content": "Two."},
            {"role": "user", "content": "And twice that?"},
        ],
        max_tokens=50,
        user="someone",
    )
    assert answer.object == "chat.completion"
    assert answer.model == MODEL
    (choice,) = answer.choices
    assert (choice.finish_reason, choice.message.role) == ("stop", "assistant")
    assert choice.message.content is not None
    assert "question" in choice.message.content
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0


def test_images_are_bound_to_their_question(sdk: OpenAI, engine: FakeEngine) -> None:
    def answer(*parts: str) -> str:
        found = sdk.chat.completions.create(model=MODEL, messages=ask(*parts)).choices[0].message.content
        assert found is not None
        return found

    red, again, blue = answer("What is it?", png("red")), answer("What is it?", png("red")), answer("?", png("blue"))
    assert red == again
    assert red != blue
    many = answer(*[png("red"), png("green"), png("blue")], "Describe all.")
    assert "media none" not in many


def test_what_is_streamed_is_the_answer(sdk: OpenAI, engine: FakeEngine) -> None:
    whole = sdk.chat.completions.create(model=MODEL, messages=ask("Say it", png("red"))).choices[0].message.content
    stream = sdk.chat.completions.create(
        model=MODEL, messages=ask("Say it", png("red")), stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == whole
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0


def test_streaming_works_while_redis_is_away(api: Served, engine: FakeEngine) -> None:
    alone = api.settings.model_copy(update={"redis_url": "redis://127.0.0.1:9/0"})
    with serving(alone) as (url, _), OpenAI(base_url=f"{url}/v1", api_key=api.caller.key, max_retries=0) as sdk:
        stream = sdk.chat.completions.create(model=MODEL, messages=ask("Say it"), stream=True)
        assert "question" in "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def test_a_long_answer_is_cut_and_said_so(sdk: OpenAI, engine: FakeEngine) -> None:
    answer = sdk.chat.completions.create(model=MODEL, messages=ask("Say it"), max_completion_tokens=2)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2


def test_a_bad_image_is_an_error_of_the_request(sdk: OpenAI, engine: FakeEngine) -> None:
    broken = "data:image/png;base64," + base64.b64encode(b"not a picture").decode()
    with pytest.raises(openai.APIStatusError) as caught:
        sdk.chat.completions.create(model=MODEL, messages=ask("What?", broken))
    assert 400 <= caught.value.status_code < 500
    assert caught.value.code in {"unsupported_media", "corrupt_media"}
    with pytest.raises(openai.APIError) as streamed:
        list(sdk.chat.completions.create(model=MODEL, messages=ask("What?", broken), stream=True))
    assert streamed.value.code == caught.value.code


def test_what_is_not_supported_is_refused_by_name(sdk: OpenAI) -> None:
    def refused(code: str, **options: object) -> str | None:
        with pytest.raises(openai.APIStatusError) as caught:
            sdk.chat.completions.create(**{"model": MODEL, "messages": ask("?"), **options})  # type: ignore[call-overload]  # on purpose
        assert caught.value.code == code
        return caught.value.param

    assert refused("invalid_parameter", n=2) == "n"
    assert refused("invalid_parameter", tools=[]) == "tools"
    assert refused("invalid_parameter", response_format={"type": "json_object"}) is not None
    assert refused("model_not_found", model="gpt-4o") == "model"
    assert refused("invalid_parameter", messages=ask("?", "data:image/tiff;base64,AAAA")) is not None
    assert refused("invalid_parameter", messages=ask("?", "data:image/png;base64,%%%")) is not None
    assert refused("invalid_parameter", messages=ask("?", "file:///etc/passwd")) is not None
    assert refused("source_disabled", messages=ask("?", "https://example.org/a.png")) is not None
    assert refused("source_forbidden", messages=ask("?", "s3://secrets/a.png")) is not None
    assert refused("invalid_parameter", messages=[{"role": "assistant", "content": "I begin"}]) is not None


def test_video_frames_are_taken(sdk: OpenAI, engine: FakeEngine) -> None:
    out = io.BytesIO()
    Image.new("RGB", (64, 64), "white").save(out, "JPEG")
    frame = base64.b64encode(out.getvalue()).decode()
    content = [
        {"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{frame},{frame}"}},
        {"type": "text", "text": "What happens?"},
    ]
    answer = sdk.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": content}],  # type: ignore[list-item,misc]  # beyond OpenAI's types
        extra_body={"media_io_kwargs": {"video": {"num_frames": -1}}},
    )
    assert answer.choices[0].message.content


def test_a_client_that_goes_away_cancels_its_job(api: Served) -> None:
    hold = threading.Event()
    with working(api.settings, api.database, hold=hold), api.client() as client:
        with OpenAI(base_url=f"{api.url}/v1", api_key=api.caller.key, max_retries=0) as sdk:
            stream = sdk.chat.completions.create(model=MODEL, messages=ask("Never"), stream=True)
            next(iter(stream))
            stream.close()
            job = next(iter(client.jobs(kind="chat")))
            assert client.wait(job.id, timeout=30).state == "cancelled"
            with pytest.raises(openai.APITimeoutError):
                sdk.with_options(timeout=1.0).chat.completions.create(model=MODEL, messages=ask("Never"))
            other = next(found for found in client.jobs(kind="chat") if found.id != job.id)
            assert client.wait(other.id, timeout=30).state == "cancelled"
        hold.set()


def test_a_chat_goes_before_bulk_work(api: Served) -> None:
    with api.client() as client:
        client.submit("ocr", source={"type": "prefix", "url": "s3://scans/"}, priority="bulk")
        hold = threading.Event()
        with (
            working(api.settings, api.database, hold=hold),
            OpenAI(base_url=f"{api.url}/v1", api_key=api.caller.key, max_retries=0) as sdk,
        ):
            hold.set()
            assert sdk.chat.completions.create(model=MODEL, messages=ask("Now")).choices[0].message.content
            job = next(iter(client.jobs(kind="chat")))
            assert job.priority == "interactive"


def test_others_cannot_chat_without_the_scope(api: Served) -> None:
    reader = add_caller(api.database, "reader", scopes=("jobs:read",))
    with OpenAI(base_url=f"{api.url}/v1", api_key=reader.key, max_retries=0) as sdk:
        with pytest.raises(openai.PermissionDeniedError):
            sdk.chat.completions.create(model=MODEL, messages=ask("?"))
        assert sdk.models.list().data
    nobody = OpenAI(base_url=f"{api.url}/v1", api_key="bs_no_key", max_retries=0)
    with nobody, pytest.raises(openai.AuthenticationError):
        nobody.models.list()
