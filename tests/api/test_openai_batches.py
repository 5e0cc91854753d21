"""OpenAI batches with the unmodified `openai` package: create, poll, list, cancel, output and error files."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types import Batch
from PIL import Image
from sqlalchemy import text

from pipelines.engine.fake import FakeEngine
from pipelines.engine.types import EngineRequest, Handle, OnText
from pipelines.steps.batch_file import MAX_LINES
from tests.api.conftest import Served, add_caller
from tests.api.worker_thread import working, working_with
from tests.unit.media.samples import clip

MODEL = "internvl-chat-v1-5"


def image(colour: str) -> str:
    out = io.BytesIO()
    Image.new("RGB", (60, 40), colour).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def line(custom_id: str, *content: dict[str, Any], **body: Any) -> dict[str, Any]:
    # Each line another text: an equal one would be answered from the earlier result, past the gates of these tests.
    message = {"role": "user", "content": list(content) or f"Hello, {custom_id}"}
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": MODEL, "messages": [message], **body},
    }


def picture(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


@pytest.fixture
def sdk(api: Served) -> Iterator[OpenAI]:
    with OpenAI(
        base_url=f"{api.url}/v1", api_key=api.caller.key, max_retries=0, _strict_response_validation=True
    ) as made:
        yield made


def create(sdk: OpenAI, lines: list[Any], **options: Any) -> Batch:
    body = b"\n".join(entry if isinstance(entry, bytes) else json.dumps(entry).encode() for entry in lines)
    file = sdk.files.create(file=("requests.jsonl", body), purpose="batch")
    return sdk.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", **options
    )


def ended(sdk: OpenAI, batch: Batch) -> Batch:
    until = time.monotonic() + 60
    while batch.status not in {"completed", "failed", "expired", "cancelled"}:
        assert time.monotonic() < until, batch
        time.sleep(0.1)
        batch = sdk.batches.retrieve(batch.id)
    return batch


def rows(sdk: OpenAI, file_id: str | None) -> dict[str, dict[str, Any]]:
    assert file_id is not None
    found = [json.loads(row) for row in sdk.files.content(file_id).text.splitlines()]
    return {row["custom_id"]: row for row in found}


def test_a_batch_is_answered_line_by_line(api: Served, sdk: OpenAI) -> None:
    lines = [
        line("red", picture(image("red")), {"type": "text", "text": "What colour?"}, max_tokens=20),
        line("blue", picture(image("blue")), {"type": "text", "text": "What colour?"}),
        line("text"),
        line("broken", picture("data:image/png;base64," + base64.b64encode(b"no picture").decode())),
        line("forbidden", picture("s3://secrets/a.png")),
        line("misspelt", max_token=3),
    ]
    with working(api.settings, api.database):
        batch = create(sdk, lines, metadata={"case": "17"})
        assert batch.status == "validating"
        assert batch.metadata == {"case": "17"}
        batch = ended(sdk, batch)
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert batch.request_counts.to_dict() == {"total": 6, "completed": 3, "failed": 3}
    assert batch.usage is not None
    assert batch.usage.total_tokens > 0
    good = rows(sdk, batch.output_file_id)
    assert set(good) == {"red", "blue", "text"}
    answers = {name: row["response"]["body"]["choices"][0]["message"]["content"] for name, row in good.items()}
    assert answers["red"] != answers["blue"]
    assert all(row["error"] is None and row["response"]["status_code"] == 200 for row in good.values())
    bad = rows(sdk, batch.error_file_id)
    codes = {name: row["response"]["body"]["error"]["code"] for name, row in bad.items()}
    assert codes == {
        "broken": codes["broken"],
        "forbidden": "source_forbidden",
        "misspelt": "invalid_parameter",
    }
    assert all(400 <= row["response"]["status_code"] < 500 for row in bad.values())
    assert [found.id for found in sdk.batches.list()] == [batch.id]
    assert sdk.files.retrieve(str(batch.output_file_id)).purpose == "batch_output"


@pytest.mark.parametrize(
    ("lines", "code", "number"),
    [
        ([line("a"), b"{nonsense"], "invalid_json_line", 2),
        ([line("a"), line("b"), line("a")], "duplicate_custom_id", 3),
        ([{**line("a"), "url": "/v1/embeddings"}], "url_mismatch", 1),
        ([{**line("a"), "body": {"model": "gpt-4o", "messages": []}}], "model_mismatch", 1),
        ([{**line("a"), "custom_id": 7}], "invalid_request", 1),
        ([b"  "], "empty_file", None),
    ],
)
def test_a_file_of_another_form_fails_with_its_line(
    sdk: OpenAI, lines: list[Any], code: str, number: int | None
) -> None:
    batch = create(sdk, lines)
    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data is not None
    (problem,) = batch.errors.data
    assert (problem.code, problem.line) == (code, number)
    assert batch.failed_at is not None
    assert batch.output_file_id is None
    again = sdk.batches.retrieve(batch.id)
    assert again.status == "failed"


def test_a_batch_whose_every_line_failed_is_completed_without_output(api: Served, sdk: OpenAI) -> None:
    with working(api.settings, api.database):
        batch = ended(sdk, create(sdk, [line("a", picture("s3://secrets/a.png"))]))
    assert batch.status == "completed"
    assert batch.output_file_id is None
    assert set(rows(sdk, batch.error_file_id)) == {"a"}


class Gate(FakeEngine):
    """Answers `passing` requests at once; every other waits until it is opened."""

    def __init__(self, passing: int) -> None:
        super().__init__()
        self._passing = passing
        self._waiting = threading.Event()
        self._opened = threading.Event()

    def submit(self, request: EngineRequest, *, on_text: OnText | None = None) -> Handle:
        """Perhaps later."""
        if self._passing:
            self._passing -= 1
        else:
            self._waiting.set()
            self._opened.wait(60)
        return super().submit(request, on_text=on_text)

    def wait(self) -> None:
        """Until somebody waits: `passing` requests have been answered."""
        assert self._waiting.wait(60)

    def open(self) -> None:
        """Let all pass."""
        self._opened.set()


def test_a_cancelled_batch_keeps_what_was_answered(api: Served, sdk: OpenAI) -> None:
    gate = Gate(1)
    with working_with(gate, api.settings, api.database):
        batch = create(sdk, [line("a"), line("b"), line("c")])
        gate.wait()
        assert sdk.batches.cancel(batch.id).status == "cancelling"
        gate.open()
        batch = ended(sdk, batch)
    assert batch.status == "cancelled"
    assert batch.cancelling_at is not None
    assert batch.cancelled_at is not None
    answered, missed = rows(sdk, batch.output_file_id), rows(sdk, batch.error_file_id)
    assert set(answered) | set(missed) == {"a", "b", "c"}
    assert answered
    assert {row["error"]["code"] for row in missed.values()} == {"batch_cancelled"}
    with pytest.raises(openai.ConflictError):
        sdk.batches.cancel(batch.id)


def late(api: Served) -> None:
    """A day passes."""
    with api.database.begin() as conn:
        conn.execute(text("UPDATE jobs SET deadline_at = now() - interval '1 second'"))


def test_what_is_late_expires_and_what_was_answered_is_kept(api: Served, sdk: OpenAI) -> None:
    gate = Gate(1)
    with working_with(gate, api.settings, api.database):
        batch = create(
            sdk, [line("a"), line("b"), line("c")], output_expires_after={"anchor": "created_at", "seconds": 7200}
        )
        gate.wait()
        late(api)
        gate.open()
        batch = ended(sdk, batch)
    assert batch.status == "expired"
    assert batch.expired_at is not None
    assert batch.expires_at is not None
    assert batch.request_counts is not None
    answered = rows(sdk, batch.output_file_id)
    assert 1 <= len(answered) == batch.request_counts.completed < 3
    missed = rows(sdk, batch.error_file_id)
    assert set(answered) | set(missed) == {"a", "b", "c"}
    assert all(row["response"] is None and row["error"]["code"] == "batch_expired" for row in missed.values())
    for file_id in (batch.output_file_id, batch.error_file_id):
        file = sdk.files.retrieve(str(file_id))
        assert file.expires_at == pytest.approx(file.created_at + 7200, abs=60)
    assert sdk.batches.list().data[0].status == "expired"


def test_a_batch_that_nobody_began_expires_too(api: Served, sdk: OpenAI) -> None:
    batch = create(sdk, [line("a")])
    late(api)
    with working(api.settings, api.database):
        batch = ended(sdk, batch)
    assert (batch.status, batch.output_file_id, batch.error_file_id) == ("expired", None, None)


def test_batches_are_paged_and_belong_to_their_tenant(api: Served, sdk: OpenAI) -> None:
    ids = [create(sdk, [line("a")]).id for _ in range(5)]
    assert [batch.id for batch in sdk.batches.list(limit=2)] == ids[::-1]
    stranger = add_caller(api.database, "stranger")
    with OpenAI(base_url=f"{api.url}/v1", api_key=stranger.key, max_retries=0) as other:
        assert list(other.batches.list()) == []
        for call in (other.batches.retrieve, other.batches.cancel):
            with pytest.raises(openai.NotFoundError):
                call(ids[0])
    with pytest.raises(openai.NotFoundError):
        sdk.batches.retrieve("batch_nonsense")
    with pytest.raises(openai.NotFoundError):
        sdk.batches.create(input_file_id="file-" + "0" * 32, endpoint="/v1/chat/completions", completion_window="24h")


def test_pages_and_videos_are_read_from_one_file(api: Served, sdk: OpenAI, tmp_path: Path) -> None:
    moving = base64.b64encode(clip(tmp_path / "clip.mp4", 25, width=160, height=128).read_bytes()).decode()
    video = {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{moving}"}}
    wanted = {"type": "text", "text": "Please read all the text."}
    scan = {"type": "image_url", "image_url": {"url": image("white"), "detail": "low"}}
    lines = [
        line("page", scan, wanted, max_tokens=50),
        line("clip", video, {"type": "text", "text": "What moves?"}, media_io_kwargs={"video": {"num_frames": 6}}),
        line("rate", video, {"type": "text", "text": "What moves?"}, media_io_kwargs={"video": {"fps": 3}}),
        line("all", video, {"type": "text", "text": "?"}, media_io_kwargs={"video": {"num_frames": -1}}),
        line("noted", metadata={"page": "9"}, user="someone"),
    ]
    with working(api.settings, api.database):
        batch = ended(sdk, create(sdk, lines))
    good = rows(sdk, batch.output_file_id)
    tiles = {
        name: row["response"]["body"]["choices"][0]["message"]["content"].split()[-1] for name, row in good.items()
    }
    assert tiles == {"page": "1", "clip": "6", "rate": "3", "noted": "0"}
    (bad,) = rows(sdk, batch.error_file_id).values()
    assert bad["custom_id"] == "all"
    assert (
        bad["response"]["body"]["error"]["param"] is None or "num_frames" in bad["response"]["body"]["error"]["message"]
    )
    with api.client() as client:
        noted = next(item for item in client.items(batch.id.removeprefix("batch_")) if item.name == "noted")
    assert noted.metadata == {"page": "9", "user": "someone", "line": 5}


def refused_list(sdk: OpenAI) -> str | None:
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        sdk.batches.list(after="batch_nonsense")
    return caught.value.param


def test_what_a_batch_cannot_be_is_refused_at_once(api: Served, sdk: OpenAI) -> None:
    file = sdk.files.create(file=("requests.jsonl", json.dumps(line("a")).encode()), purpose="batch")

    def refused(**options: Any) -> str | None:
        body = {"input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h", **options}
        with pytest.raises(openai.UnprocessableEntityError) as caught:
            sdk.batches.create(**body)
        return caught.value.param

    assert refused(endpoint="/v1/embeddings") == "endpoint"
    assert refused(completion_window="1h") == "completion_window"
    assert refused(metadata={str(n): "x" for n in range(17)}) == "metadata"
    assert refused(metadata={"name": "x" * 513}) == "metadata.name"
    assert refused(output_expires_after={"anchor": "created_at", "seconds": 60}) == "output_expires_after.seconds"
    assert refused(extra_body={"priority": 1}) == "priority"
    assert refused_list(sdk) == "after"
    assert sdk.batches.list().data == []


def test_too_many_lines_fail_the_batch(sdk: OpenAI) -> None:
    rest = json.dumps(line("X"))
    body = "\n".join(rest.replace('"X"', f'"{number}"', 1) for number in range(MAX_LINES + 1)).encode()
    file = sdk.files.create(file=("requests.jsonl", body), purpose="batch")
    batch = sdk.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert [problem.code for problem in batch.errors.data] == ["too_many_lines"]


def test_another_jobs_metadata_makes_no_batch(api: Served, sdk: OpenAI) -> None:
    with api.client() as client:
        client.submit("ocr", source={"type": "prefix", "url": "s3://scans/"}, metadata={"openai.batch": "1"})
    assert sdk.batches.list().data == []
