"""Every option and kind of part of a chat, by the unmodified `openai` package, down to what the engine is asked."""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletion

from pipelines.engine.types import FinishReason, Tiles
from pipelines.media.ssrf import AddressPolicy, guarded_client
from pipelines.settings import Settings
from tests.api.chats import MODEL, WatchedEngine, data_url, image, picture, sdk_of, user, video, words
from tests.api.conftest import Served
from tests.api.worker_thread import working_with
from tests.unit.media.samples import clip
from tests.unit.media.servers import CERTIFICATE, answer, http_server


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"https_sources": True})


@pytest.fixture
def sdk(api: Served) -> Iterator[OpenAI]:
    with sdk_of(api) as made:
        yield made


@pytest.fixture
def engine(api: Served) -> Iterator[WatchedEngine]:
    policy = AddressPolicy(
        networks=(ipaddress.ip_network("127.0.0.0/8"),),
        resolver=lambda host, port: ["127.0.0.1" if host == "media.test" else "10.0.0.7"],
    )
    with working_with(
        WatchedEngine(),
        api.settings,
        api.database,
        make_https=lambda: guarded_client(policy=policy, ca_file=str(CERTIFICATE)),
    ) as made:
        yield made


def ask(sdk: OpenAI, *parts: dict[str, Any], **options: Any) -> ChatCompletion:
    made = sdk.chat.completions.create(model=MODEL, messages=[user(*parts)], **options)
    assert isinstance(made, ChatCompletion)
    return made


def tiles(engine: WatchedEngine) -> tuple[int, ...]:
    """Of each image of the last request."""
    media = engine.asked[-1].media
    return media.counts if isinstance(media, Tiles) else ()


def test_decoding_options_reach_the_engine_and_usage_is_the_engines_own(sdk: OpenAI, engine: WatchedEngine) -> None:
    answered = ask(
        sdk, words("Say it"), temperature=0.7, top_p=0.9, seed=11, max_tokens=40, stop=["tiles"], user="someone"
    )
    asked = engine.asked[0].params
    assert (asked.do_sample, asked.temperature, asked.top_p, asked.top_k) == (True, 0.7, 0.9, 0)
    assert (asked.seed, asked.max_new_tokens, asked.stop) == (11, 40, ("tiles",))
    made = engine.handles[0].future.result()
    assert answered.choices[0].message.content == made.text
    assert "tiles" not in made.text
    assert answered.choices[0].finish_reason == "stop"
    assert answered.usage is not None
    assert (answered.usage.prompt_tokens, answered.usage.completion_tokens) == (
        made.prompt_tokens,
        made.completion_tokens,
    )
    cut = ask(sdk, words("Say it"), max_completion_tokens=3)
    assert engine.asked[1].params.do_sample is False
    assert engine.handles[1].future.result().finish_reason is FinishReason.LENGTH
    assert (cut.choices[0].finish_reason, cut.usage and cut.usage.completion_tokens) == ("length", 3)


def test_what_the_caller_notes_is_found_again(api: Served, sdk: OpenAI, engine: WatchedEngine) -> None:
    ask(sdk, words("?"), metadata={"case": "17"}, user="someone", n=1, store=False)
    with api.client() as client:
        (job,) = client.jobs(metadata={"case": "17"})
        assert job.metadata == {"case": "17", "user": "someone"}


def test_history_may_hold_the_clients_own_messages_and_images_of_earlier_turns(
    sdk: OpenAI, engine: WatchedEngine
) -> None:
    red, blue = data_url(picture("red")), data_url(picture("blue"))
    first = user(image(red, detail="low"), words("What is it?"))
    said = sdk.chat.completions.create(model=MODEL, messages=[first]).choices[0].message
    second = user(words("And these?"), image(blue, detail="low"), image(red, detail="low"))
    history: list[Any] = [{"role": "developer", "content": "Be short."}, first, said, second]
    sdk.chat.completions.create(model=MODEL, messages=history)
    asked = engine.asked[-1]
    assert asked.system == "Be short."
    assert asked.history == (("<image>\nWhat is it?", said.content),)
    assert asked.question.count("<image>") == 2
    assert isinstance(asked.media, Tiles)
    one, two, three = asked.media.digests
    assert one == three != two


def test_the_detail_of_each_image_decides_its_tiles(sdk: OpenAI, engine: WatchedEngine) -> None:
    wide = data_url(picture("red", size=(1800, 600)))
    ask(sdk, image(wide, detail="low"), image(wide, detail="high"), image(wide), words("?"))
    low, high, auto = tiles(engine)
    assert low == 1
    assert high == auto > 1
    ask(sdk, image(wide), words("?"), extra_body={"max_tiles": 3})
    assert 1 < tiles(engine)[0] <= 4  # and the thumbnail


def test_an_image_is_fetched_by_https_and_never_from_our_own_network(sdk: OpenAI, engine: WatchedEngine) -> None:
    def refused(url: str, **options: Any) -> str | None:
        with pytest.raises(openai.APIError) as caught:
            ask(sdk, image(url), words("?"), **options)
        return caught.value.code

    routes = {
        "/a.png": answer(200, picture("red")),
        "/moved.png": answer(302, Location="https://inner.test/a.png"),
    }
    with http_server(routes, tls=True) as port:
        ask(sdk, image(f"https://media.test:{port}/a.png", detail="low"), words("?"))
        assert tiles(engine) == (1,)
        assert refused(f"https://media.test:{port}/moved.png") == "source_forbidden"
        assert refused(f"https://inner.test:{port}/a.png") == "source_forbidden"
        assert refused(f"http://media.test:{port}/a.png") == "source_forbidden"
    assert len(engine.asked) == 1


def test_a_video_comes_inside_the_request_or_by_https(sdk: OpenAI, engine: WatchedEngine, tmp_path: Path) -> None:
    data = clip(tmp_path / "clip.mp4", 50, width=160, height=128).read_bytes()  # two seconds
    inline = video(data_url(data, "video/mp4"))

    def frames(**options: Any) -> int:
        body = {"media_io_kwargs": {"video": options}} if options else None
        ask(sdk, inline, words("What happens?"), extra_body=body)
        assert engine.asked[-1].question.startswith("Frame1: <image>\nFrame2: <image>\n")
        return len(tiles(engine))

    assert frames() == 32
    assert frames(num_frames=5) == 5
    assert frames(fps=2) == 4
    assert frames(fps=20, num_frames=7) == 7
    with http_server({"/clip.mp4": answer(200, data)}, tls=True) as port:
        ask(
            sdk,
            video(f"https://media.test:{port}/clip.mp4"),
            words("?"),
            extra_body={"media_io_kwargs": {"video": {"num_frames": 3}}},
        )
    assert len(tiles(engine)) == 3


def test_joined_frames_are_one_tile_each(sdk: OpenAI, engine: WatchedEngine) -> None:
    stills = [base64.b64encode(picture(colour, "JPEG", (900, 300))).decode() for colour in ("red", "lime", "blue")]
    joined = video(f"data:video/jpeg;base64,{','.join(stills)}")
    ask(sdk, joined, words("What happens?"), extra_body={"media_io_kwargs": {"video": {"num_frames": -1}}})
    assert tiles(engine) == (1, 1, 1)
    assert engine.asked[-1].question.endswith("Frame3: <image>\nWhat happens?")
    ask(sdk, joined, words("?"), extra_body={"media_io_kwargs": {"video": {"num_frames": 2}}})
    assert tiles(engine) == (1, 1)


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"n": 2}, "n"),
        ({"tools": []}, "tools"),
        ({"logit_bias": {"1": 1}}, "logit_bias"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": ["x"] * 9}, "stop"),
        ({"store": True}, "store"),
        ({"extra_body": {"max_tiles": 41}}, "max_tiles"),
        ({"extra_body": {"best_of": 2}}, "best_of"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [video("data:video/mp4;base64,AAAA")]}]}, None),
    ],
)
def test_an_option_that_is_not_supported_is_refused_by_its_name(
    sdk: OpenAI, options: dict[str, Any], param: str | None
) -> None:
    if param is None:
        options = {**options, "extra_body": {"media_io_kwargs": {"video": {"num_frames": -1}}}}
        param = "media_io_kwargs.video.num_frames"
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        sdk.chat.completions.create(**{"model": MODEL, "messages": [user(words("?"))], **options})
    assert (caught.value.code, caught.value.param) == ("invalid_parameter", param)


def test_usage_of_a_stream_is_asked_for_with_a_stream(sdk: OpenAI) -> None:
    with pytest.raises(openai.UnprocessableEntityError, match="stream_options"):
        ask(sdk, words("?"), stream_options={"include_usage": True})
