"""OpenAI batches with the unmodified `openai` package: create, poll, list, cancel, output and error files."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types import Batch
from PIL import Image
from sqlalchemy import text

from tests.api.conftest import Served, add_caller
from tests.api.worker_thread import working

MODEL = "internvl-chat-v1-5"


def image(colour: str) -> str:
    out = io.BytesIO()
    Image.new("RGB", (60, 40), colour).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def line(custom_id: str, *content: dict[str, Any], **body: Any) -> dict[str, Any]:
    message = {"role": "user", "content": list(content) or "Hello"}
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


def test_a_cancelled_batch_keeps_what_was_answered(api: Served, sdk: OpenAI) -> None:
    hold = threading.Event()
    with working(api.settings, api.database, hold=hold):
        batch = create(sdk, [line("a"), line("b")])
        assert sdk.batches.cancel(batch.id).status in {"cancelling", "cancelled"}
        batch = ended(sdk, batch)
        hold.set()
    assert batch.status == "cancelled"
    with pytest.raises(openai.ConflictError):
        sdk.batches.cancel(batch.id)


def test_what_is_late_expires(api: Served, sdk: OpenAI) -> None:
    with working(api.settings, api.database):
        batch = ended(sdk, create(sdk, [line("a"), line("b")]))
    with api.database.begin() as conn:  # as the leader writes it for items past their deadline
        conn.execute(text("UPDATE job_progress SET errors = jsonb_build_object('deadline_exceeded', 1)"))
    late = sdk.batches.retrieve(batch.id)
    assert late.status == "expired"
    assert late.expired_at is not None
    assert late.output_file_id == batch.output_file_id


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
