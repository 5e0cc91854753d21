from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import wait
from dataclasses import replace

import pytest

from pipelines.engine.errors import BadRequest, RemoteRefused, RemoteUnavailable, RequestCancelled
from pipelines.engine.fake import FakeEngine, FakeOptions, fake_answer
from pipelines.engine.prompt import video_prefix
from pipelines.engine.remote import RemoteEngine, RemoteOptions
from pipelines.engine.remote_wire import Answer, build_body, read_answer
from pipelines.engine.types import (
    Accepts,
    AnswerPrefix,
    EncodedImage,
    EncodedImages,
    EngineRequest,
    FinishReason,
    GenerationParams,
)
from pipelines.jobs.errors import RetryClass
from tests.contracts.openai_server import OpenAIServer, serve, to_request

ASK = EngineRequest(request_id="r", question="What?", params=GenerationParams(max_new_tokens=50))


def picture(number: int, mime: str = "image/jpeg") -> EncodedImage:
    return EncodedImage(mime=mime, data=b"picture %d" % number, digest=str(number))


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    behind = FakeEngine(FakeOptions(accepts=Accepts.IMAGES, slots=32))
    with serve(behind) as server:
        yield server
    behind.close()


@pytest.fixture
def engine(server: OpenAIServer) -> Iterator[RemoteEngine]:
    engine = RemoteEngine(RemoteOptions(url=server.url, slots=3, longest_wait=5))
    yield engine
    engine.close()


def test_images_stand_at_their_placeholders(engine: RemoteEngine, server: OpenAIServer) -> None:
    media = EncodedImages(images=(picture(1), picture(2, "image/png")))
    history = (("First: <image>\nand?", "Yes."),)
    request = EngineRequest(
        request_id="r", question="Then <image>\nthis?", history=history, media=media, system="Be brief."
    )
    engine.submit(request).future.result(20)
    messages = server.bodies[-1]["messages"]
    assert messages[0] == {"role": "system", "content": "Be brief."}
    assert [part["type"] for part in messages[1]["content"]] == ["text", "image_url", "text"]
    assert messages[1]["content"][1]["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert messages[2] == {"role": "assistant", "content": "Yes."}
    assert messages[3]["content"][1]["image_url"]["url"].startswith("data:image/png;base64,")
    back = to_request(server.bodies[-1])
    assert back.question.split() == ["Then", "<image>", "this?"]
    assert [image.data for image in back.media.images] == [b"picture 1", b"picture 2"]  # type: ignore[union-attr]


def test_the_server_answers_what_was_asked(engine: RemoteEngine, server: OpenAIServer) -> None:
    answer = engine.submit(ASK).future.result(20)
    assert answer.text == fake_answer(to_request(server.bodies[-1]))
    assert answer.finish_reason is FinishReason.STOP
    assert answer.mean_logprob is None


def test_frames_go_as_one_part_each_or_as_one_jpeg_video() -> None:
    media = EncodedImages(images=tuple(picture(n) for n in range(3)), video=True)
    request = EngineRequest(request_id="r", question=video_prefix(3) + "What moves?", media=media)
    frames = build_body(request, model="m", video="images", extensions=True)["messages"][0]["content"]
    assert [part["type"] for part in frames].count("image_url") == 3
    assert frames[0]["text"] == "Frame1: "
    body = build_body(request, model="m", video="jpeg_frames", extensions=True)
    video, text = body["messages"][0]["content"]
    assert video["video_url"]["url"].startswith("data:video/jpeg;base64,")
    assert video["video_url"]["url"].count(",") == 3
    assert text == {"type": "text", "text": "What moves?"}
    assert body["media_io_kwargs"] == {"video": {"num_frames": -1}}


def test_frames_that_are_not_jpeg_go_as_images() -> None:
    media = EncodedImages(images=(picture(1, "image/png"),), video=True)
    body = build_body(
        EngineRequest(request_id="r", question="?", media=media), model="m", video="jpeg_frames", extensions=True
    )
    assert body["messages"][0]["content"][0]["type"] == "image_url"


def test_options_are_translated() -> None:
    greedy = build_body(ASK, model="m", video="images", extensions=True)
    assert greedy["temperature"] == 0.0
    assert "top_p" not in greedy
    params = GenerationParams(
        do_sample=True, temperature=0.5, top_k=0, top_p=0.9, seed=4, repetition_penalty=1.1, stop=("x",)
    )
    body = build_body(
        EngineRequest(request_id="r", question="?", params=params), model="m", video="images", extensions=True
    )
    assert (body["temperature"], body["top_p"], body["seed"], body["stop"]) == (0.5, 0.9, 4, ["x"])
    assert (body["top_k"], body["repetition_penalty"]) == (-1, 1.1)
    with pytest.raises(BadRequest):
        build_body(
            EngineRequest(request_id="r", question="?", params=params), model="m", video="images", extensions=False
        )


def test_an_image_without_placeholder_is_refused(engine: RemoteEngine) -> None:
    media = EncodedImages(images=(picture(1), picture(2)))
    with pytest.raises(BadRequest):
        engine.submit(EngineRequest(request_id="r", question="<image>", media=media))
    with pytest.raises(BadRequest):
        engine.submit(EngineRequest(request_id="r", question="?", media=EncodedImages(images=())))


def test_no_more_requests_are_in_flight_than_slots(engine: RemoteEngine, server: OpenAIServer) -> None:
    wait([engine.submit(ASK).future for _ in range(30)], 30)
    assert 1 <= server.most_inside <= 3


def test_retry_after_is_kept_by_all_threads(engine: RemoteEngine, server: OpenAIServer) -> None:
    server.faults.append((429, {"retry-after": "1"}))
    first = engine.submit(ASK)
    while not server.times:
        time.sleep(0.005)
    time.sleep(0.1)
    others = [engine.submit(ASK) for _ in range(3)]
    assert first.future.result(20).text
    assert all(each.future.result(20).text for each in others)
    assert min(server.times[1:]) - server.times[0] >= 0.9


def test_a_wish_to_wait_for_long_is_handed_to_the_caller(engine: RemoteEngine, server: OpenAIServer) -> None:
    server.faults.append((503, {"retry-after": "900"}))
    with pytest.raises(RemoteUnavailable) as caught:
        engine.submit(ASK).future.result(20)
    assert caught.value.retry_after == 900
    assert caught.value.retry is RetryClass.TRANSIENT


def test_a_date_is_a_wish_too(engine: RemoteEngine, server: OpenAIServer) -> None:
    server.faults.append((503, {"retry-after": "Wed, 21 Oct 2099 07:28:00 GMT"}))
    with pytest.raises(RemoteUnavailable) as caught:
        engine.submit(ASK).future.result(20)
    assert caught.value.retry_after
    assert caught.value.retry_after > 1e6


@pytest.mark.parametrize("fault", [(500, {}), (503, {"retry-after": "soon"}), "hang up"])
def test_a_failing_server_is_asked_again(
    engine: RemoteEngine, server: OpenAIServer, fault: tuple[int, dict[str, str]] | str
) -> None:
    server.faults.append(fault)
    assert engine.submit(ASK).future.result(20).text
    assert len(server.bodies) == 2


def test_a_server_that_keeps_failing_is_unavailable(server: OpenAIServer) -> None:
    engine = RemoteEngine(RemoteOptions(url=server.url, attempts=2))
    server.faults += [(502, {})] * 2
    with pytest.raises(RemoteUnavailable):
        engine.submit(ASK).future.result(20)
    assert len(server.bodies) == 2
    engine.close()


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422])
def test_a_refusal_is_final_and_says_nothing_private(engine: RemoteEngine, server: OpenAIServer, status: int) -> None:
    server.faults.append((status, {}))
    with pytest.raises(RemoteRefused) as caught:
        engine.submit(ASK).future.result(20)
    assert str(status) in caught.value.message
    assert "secret" not in caught.value.message
    assert len(server.bodies) == 1


@pytest.mark.parametrize("fault", ["cut", "error"])
def test_an_answer_that_breaks_off_is_not_repeated_and_not_believed(
    engine: RemoteEngine, server: OpenAIServer, fault: str
) -> None:
    server.faults.append(fault)
    pieces: list[str] = []
    with pytest.raises(RemoteUnavailable) as caught:
        engine.submit(ASK, on_text=pieces.append).future.result(20)
    assert "secret" not in caught.value.message
    assert pieces
    assert len(server.bodies) == 1


def test_a_cancelled_request_hangs_up(server: OpenAIServer) -> None:
    server.engine = slow = FakeEngine(FakeOptions(accepts=Accepts.IMAGES, seconds_a_token=0.15))
    engine = RemoteEngine(RemoteOptions(url=server.url))
    handle = engine.submit(ASK)
    assert next(iter(handle.stream()))
    handle.cancel()
    with pytest.raises(RequestCancelled):
        handle.future.result(1)
    deadline = time.monotonic() + 10
    while engine.stats().running:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    engine.close()
    slow.close()


def test_the_first_model_is_taken_and_the_key_is_sent(server: OpenAIServer) -> None:
    server.key = "k"
    engine = RemoteEngine(RemoteOptions(url=server.url, api_key="k"))
    assert engine.info.model == "internvl"
    engine.close()
    with pytest.raises(RemoteRefused):
        RemoteEngine(RemoteOptions(url=server.url, api_key="other"))
    with pytest.raises(RemoteUnavailable):
        RemoteEngine(RemoteOptions(url="http://127.0.0.1:9"))


def test_an_event_stream_is_read_as_the_text_it_joins_to() -> None:
    lines = [
        ": comment",
        'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}',
        'data: {"choices":[{"delta":{"content":"  a"}}]}',
        'data: {"choices":[{"delta":{"content":" \\n"}}]}',
        'data: {"choices":[{"delta":{"content":"b "},"finish_reason":"length"}]}',
        "data: [DONE]",
        'data: {"choices":[{"delta":{"content":"never"}}]}',
    ]
    answer = Answer()
    assert "".join(read_answer(lines, answer)) == answer.text == "a \nb"
    assert answer.finish_reason is FinishReason.LENGTH
    assert answer.completion_tokens == 3


@pytest.mark.parametrize("data", ["{", "[1]"])
def test_what_is_no_event_is_a_failure_of_the_server(data: str) -> None:
    with pytest.raises(RemoteUnavailable):
        list(read_answer([f"data: {data}"], Answer()))


def test_an_unknown_end_is_refused() -> None:
    with pytest.raises(RemoteRefused):
        list(read_answer(['data: {"choices":[{"finish_reason":"content_filter"}]}'], Answer()))


def test_a_server_that_is_not_said_to_continue_is_not_asked_to(engine: RemoteEngine, server: OpenAIServer) -> None:
    assert not engine.info.continues
    with pytest.raises(BadRequest):
        engine.submit(replace(ASK, prefix=AnswerPrefix(text="so far")))
    assert server.bodies == []


def test_a_retry_of_a_continuation_keeps_what_it_goes_on_with(server: OpenAIServer) -> None:
    engine = RemoteEngine(RemoteOptions(url=server.url, continues=True))
    whole = engine.submit(ASK).future.result(20)
    server.faults.append((503, {}))
    prefix = AnswerPrefix(text=" ".join(whole.text.split()[:2]))
    joined = engine.submit(replace(ASK, prefix=prefix)).future.result(20)
    engine.close()
    assert joined.text == whole.text
