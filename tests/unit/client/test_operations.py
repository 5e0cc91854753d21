"""The client's operations, without any input or output: what is sent, what is made of the answers."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.client import (
    ApiError,
    AsyncClient,
    AuthenticationFailed,
    Client,
    Conflict,
    ConnectionFailed,
    InvalidRequest,
    NotFound,
    RateLimited,
    RetryPolicy,
    ServerError,
    WaitTimeout,
    following,
    operations,
)
from api.client.calls import Answer, Call, Emit, Lost, Pause, Reply
from api.client.errors import error_of

JOB: dict[str, Any] = {
    "id": "01a20b88-d08c-70dc-ad21-3c0664f4e867",
    "kind": "ocr",
    "state": "running",
    "priority": "normal",
    "parameters": {},
    "source": {},
    "metadata": {},
    "counts": {"pending": 1, "succeeded": 2, "failed": 1},
    "total": 4,
    "planned": True,
    "progress": 0.75,
    "version": 3,
    "created_at": "2026-01-01T00:00:00Z",
    "usage": {"tiles": 3, "cost": 0.5, "something_new": 1},
    "errors": {"corrupt_media": 1},
    "something_new": True,
}


class Core:
    """What operations know of their client."""

    def __init__(self, retries: int = 3) -> None:
        self.retry = RetryPolicy(retries=retries, base=1.0, cap=8.0, uniform=lambda low, high: high)


def reply(body: Any = None, status: int = 200, **headers: str) -> Reply:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status=status, headers=names, body=b"" if body is None else json.dumps(body).encode())


def problem(status: int, code: str, **headers: str) -> Reply:
    return reply({"error": {"message": "no", "code": code, "param": "a"}}, status, **headers)


def run(operation: Any, answer: Callable[[Call], Answer]) -> tuple[Any, list[Any]]:
    """Perform an operation with `answer` as the server; its value (or what it emitted) and the steps."""
    steps: list[Any] = []
    emitted: list[Any] = []
    sent: Answer = None
    while True:
        try:
            step = operation.send(sent)
        except StopIteration as stop:
            return (emitted or stop.value), steps
        steps.append(step)
        sent = None
        if isinstance(step, Emit):
            emitted.append(step.value)
        elif isinstance(step, Call):
            sent = answer(step)


def script(*answers: Answer) -> Callable[[Call], Answer]:
    left = list(answers)
    return lambda _: left.pop(0)


def test_a_submission_carries_one_idempotency_key_through_all_its_attempts() -> None:
    job, steps = run(
        operations.submit(Core(), "ocr", source={"type": "none"}),
        script(Lost(reason="x", cause=OSError()), problem(503, "store_unavailable"), reply(JOB, 202)),
    )
    calls = [step for step in steps if isinstance(step, Call)]
    assert len({call.headers["idempotency-key"] for call in calls}) == 1
    assert calls[0].json["priority"] == "normal"
    assert job.id == JOB["id"]
    assert job.done == 3
    assert job.usage.cost == 0.5


def test_a_given_idempotency_key_is_used() -> None:
    _, steps = run(
        operations.submit(Core(), "ocr", source={"type": "none"}, idempotency_key="k"), script(reply(JOB, 202))
    )
    assert steps[0].headers["idempotency-key"] == "k"


def test_retry_after_is_honoured_and_else_pauses_grow() -> None:
    _, steps = run(
        operations.job(Core(), JOB["id"]),
        script(problem(429, "rate_limited", retry_after="7"), problem(500, "x"), problem(502, "x"), reply(JOB)),
    )
    assert [step.seconds for step in steps if isinstance(step, Pause)] == [7.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "invalid_json", InvalidRequest),
        (401, "unauthenticated", AuthenticationFailed),
        (404, "not_found", NotFound),
        (409, "conflict", Conflict),
        (422, "invalid_parameter", InvalidRequest),
    ],
)
def test_what_cannot_be_helped_is_raised_at_once(status: int, code: str, kind: type[ApiError]) -> None:
    with pytest.raises(kind) as caught:
        run(operations.job(Core(), "a"), script(problem(status, code, x_request_id="req_1")))
    assert (caught.value.status, caught.value.code, caught.value.param) == (status, code, "a")
    assert caught.value.request_id == "req_1"


def test_what_may_pass_is_tried_so_often_and_then_raised() -> None:
    with pytest.raises(RateLimited):
        run(operations.job(Core(2), "a"), script(*[problem(429, "rate_limited")] * 3))
    with pytest.raises(ConnectionFailed):
        run(operations.job(Core(1), "a"), script(*[Lost(reason="x", cause=OSError())] * 2))


def test_the_server_may_say_whether_to_retry() -> None:
    with pytest.raises(ServerError):
        run(operations.job(Core(), "a"), script(problem(500, "x", x_should_retry="false")))
    job, _ = run(operations.job(Core(), "a"), script(problem(409, "x", x_should_retry="true"), reply(JOB)))
    assert job.kind == "ocr"
    job, _ = run(operations.job(Core(), "a"), script(problem(409, "idempotency_in_flight"), reply(JOB)))
    assert job.kind == "ocr"


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_pages_are_fetched_until_there_are_no_more(sizes: list[int]) -> None:
    entries = [{**JOB, "version": index} for index in range(sum(sizes))]
    pages, start = [], 0
    for number, size in enumerate(sizes):
        part = entries[start : start + size]
        start += size
        more = number < len(sizes) - 1
        pages.append(reply({"data": part, "has_more": more, "last_id": f"id{number}"}))
    found, steps = run(operations.jobs(Core()), script(*pages))
    assert [job.version for job in found or []] == list(range(len(entries)))
    assert [step.query.get("after") for step in steps if isinstance(step, Call)] == [
        None if number == 0 else f"id{number - 1}" for number in range(len(sizes))
    ]


def test_results_go_on_behind_the_last_line() -> None:
    def line(seq: int) -> dict[str, Any]:
        return {"job_id": "j", "seq": seq, "name": "a", "document": 0, "state": "succeeded", "attempt": 1, "text": "t"}

    def server(call: Call) -> Answer:
        after, limit = int(str(call.query.get("after", -1))), int(str(call.query["limit"]))
        rows = [line(seq) for seq in range(after + 1, 1_203)][:limit]
        return Reply(status=200, headers={}, body=b"".join(json.dumps(row).encode() + b"\n" for row in rows))

    found, _ = run(operations.results(Core(), "j"), server)
    assert [result.seq for result in found] == list(range(1_203))


def test_waiting_sends_the_etag_and_reports_every_version() -> None:
    versions: list[Answer] = [
        reply(JOB, etag='W/"3"'),
        Reply(status=304, headers={}, body=b""),
        Lost(reason="x", cause=OSError()),
        problem(503, "x"),
        reply({**JOB, "state": "succeeded", "version": 4}, etag='W/"4"'),
    ]
    seen: list[int] = []
    job, steps = run(following.wait(Core(), "j", on_update=lambda job: seen.append(job.version)), script(*versions))
    assert job.finished
    assert seen == [3, 4]
    calls = [step for step in steps if isinstance(step, Call)]
    assert "if-none-match" not in calls[0].headers
    assert "wait" not in calls[0].query
    assert all(call.headers["if-none-match"] == 'W/"3"' for call in calls[1:])
    assert all(call.query["wait"] == "30" for call in calls[1:])


def test_waiting_ends_when_its_time_is_up() -> None:
    with pytest.raises(WaitTimeout, match="still running"):
        run(following.wait(Core(), "j", timeout=0), script(*[reply(JOB, etag="x")] * 9))


def test_waiting_honours_a_server_that_asks_for_patience() -> None:
    _, steps = run(
        following.wait(Core(), "j"),
        script(
            problem(429, "rate_limited", retry_after="9"),
            problem(503, "x", retry_after="4"),
            reply({**JOB, "state": "failed"}, etag="x"),
        ),
    )
    assert [step.seconds for step in steps if isinstance(step, Pause)] == [9.0, 4.0]


def test_what_waiting_cannot_help_is_raised() -> None:
    with pytest.raises(AuthenticationFailed):
        run(following.wait(Core(), "j"), script(problem(401, "unauthenticated")))


def test_jobs_are_filtered_by_every_filter_the_server_has() -> None:
    page = reply({"data": [], "has_more": False, "last_id": None})
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    _, (call,) = run(
        operations.jobs(
            Core(),
            state=["failed", "partial"],
            kind="ocr",
            metadata={"case": "17"},
            created_after=noon,
            created_before=noon,
            parent_id="p",
        ),
        script(page),
    )
    assert call.query == {
        "state": ["failed", "partial"],
        "kind": "ocr",
        "metadata[case]": "17",
        "created_after": noon.astimezone().isoformat(),
        "created_before": noon.astimezone().isoformat(),
        "parent_id": "p",
        "limit": "200",
    }


def test_an_id_never_changes_the_path() -> None:
    for bad in ("", "../admin", "a/b", "a?b", "a b", "é/"):
        with pytest.raises(InvalidRequest):
            run(operations.job(Core(), bad), script())


def test_an_answer_that_is_no_json_is_said_so() -> None:
    with pytest.raises(ConnectionFailed, match="Batchsight"):
        run(operations.job(Core(), "a"), script(Reply(status=200, headers={}, body=b"<html>")))


def test_errors_without_our_body_still_make_sense() -> None:
    error = error_of(502, {"retry-after": "soon"}, b"<html>bad gateway</html>")
    assert isinstance(error, ServerError)
    assert error.retry_after is None
    assert "502" in str(error)


def test_both_clients_have_the_same_methods_and_signatures() -> None:
    own = {"drive", "iterate", "close", "files"}
    names = {name for name in vars(Client) if not name.startswith("_")} - own
    assert names == {name for name in vars(AsyncClient) if not name.startswith("_")} - own
    for name in names:
        assert inspect.signature(getattr(Client, name)) == inspect.signature(getattr(AsyncClient, name))
        assert inspect.getdoc(getattr(Client, name))
