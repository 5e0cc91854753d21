"""One body for every error, with a stable code and a sentence that says what to change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from api.errors import STATUS
from pipelines.jobs.errors import BatchsightError, RequestError
from tests.api.conftest import Served, add_caller, serving

MEDIA = {"type": "media", "media": [{"url": "s3://scans/a.png"}]}
OCR = {"kind": "ocr", "source": MEDIA}


def problem(answer: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"]
    body = answer.json()
    assert body["status"] == status
    assert body["type"] == f"urn:batchsight:error:{code}"
    assert body["title"]
    assert body["instance"] == answer.request.url.path
    assert body["error"]["code"] == code
    assert body["error"]["message"] == body["detail"]
    assert body["error"]["type"].endswith("_error")
    return dict(body["error"])


def test_addresses_and_methods_that_do_not_exist(http: httpx2.Client) -> None:
    problem(http.get("/v1/nothing"), 404, "route_not_found")
    problem(http.get("/v1/jobs/no-uuid"), 422, "invalid_parameter")
    answer = http.put("/v1/jobs")
    problem(answer, 405, "method_not_allowed")
    assert "GET" in answer.headers["allow"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "not valid JSON"),
        (b'{"kind": NaN}', "NaN"),
        (b'{"kind": "a\\u0000b"}', "U+0000"),
        (b'{"kind": "\\ud800"}', "surrogate"),
        (b'{"kind": 1e999}', "out of range"),
        (b"[" * 100_000, "nested"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, "nested"),
        (b"\xff\xfe", "UTF-8"),
        (b'{"kind": ' + b"9" * 5_000 + b"}", "digits"),
    ],
)
def test_bodies_that_cannot_be_read(http: httpx2.Client, body: bytes, said: str) -> None:
    answer = http.post("/v1/jobs", content=body, headers={"content-type": "application/json"})
    assert said in problem(answer, 400, answer.json()["error"]["code"])["message"]


@pytest.mark.parametrize(
    ("change", "param", "said"),
    [
        ({"kind": "orc"}, "kind", "the kinds are caption, chat, ocr, video_qa"),
        ({"kind": None}, "kind", "valid string"),
        ({"source": None}, "source", ""),
        ({"source": {"type": "magic"}}, "source", "prefix"),
        ({"sauce": 1}, "sauce", "does not exist"),
        ({"parameters": {"max_tiles": 41}}, "parameters.max_tiles", "40"),
        ({"parameters": {"max_tile": 4}}, "parameters.max_tile", "known parameters"),
        ({"parameters": {"generation": {"temperature": 0}}}, "parameters.generation.temperature", "greater than 0"),
        ({"priority": "urgent"}, "priority", "interactive"),
        ({"deadline_at": "2001-01-01T00:00:00Z"}, "deadline_at", "past"),
        ({"deadline_at": "2101-01-01T00:00:00"}, "deadline_at", "timezone"),
        ({"deadline_at": 4102444800}, "deadline_at", "with its zone"),
        ({"parameters": {"max_tiles": True}}, "parameters.max_tiles", "integer"),
        ({"parameters": {"max_tiles": "6"}}, "parameters.max_tiles", "integer"),
        ({"metadata": {"a": "x" * 20_000}}, "metadata", "bytes"),
        ({"source": {"type": "media", "media": []}}, "source.media.media", "at least 1"),
        ({"source": {"type": "media", "media": [{}]}}, "source.media.media.0", "one of both"),
        ({"source": {"type": "media", "media": [{"url": "ftp://x/y"}]}}, "source.media.0", "write s3://bucket/key"),
        ({"source": {"type": "media", "media": [{"url": "s3://scans/../x"}]}}, "source.media.0", "`..`"),
        ({"source": {"type": "media", "media": [{"url": "s3://scans"}]}}, "source.media.0", "no object"),
        ({"source": {"type": "media", "media": [{"url": "s3://UPPER/x"}]}}, "source.media.0", "bucket"),
        (
            {"source": {"type": "media", "media": [{"url": "s3://scans/a", "parameters": {"max_tiles": 0}}]}},
            "source.media.0.parameters.max_tiles",
            "greater than or equal to 1",
        ),
        ({"source": {"type": "none"}}, "source", "needs media"),
        ({"source": {"type": "manifest", "url": "https://x/y", "format": "csv"}}, "source.url", "S3"),
        ({"source": {"type": "manifest", "format": "csv"}}, "source.manifest", "one of the three"),
        ({"source": {"type": "files", "file_ids": ["nope"]}}, "source.files.file_ids.0", "pattern"),
    ],
)
def test_a_bad_field_is_named_with_what_to_change(
    http: httpx2.Client, change: dict[str, Any], param: str, said: str
) -> None:
    answer = http.post("/v1/jobs", json={**OCR, **change})
    assert answer.status_code == 422
    error = problem(answer, 422, answer.json()["error"]["code"])
    assert error["param"] == param, error
    assert said in error["message"], error


def test_sources_that_a_tenant_may_not_read(http: httpx2.Client) -> None:
    def submit(url: str, kind: str = "media") -> httpx2.Response:
        source = {"type": "prefix", "url": url} if kind == "prefix" else {"type": "media", "media": [{"url": url}]}
        return http.post("/v1/jobs", json={"kind": "ocr", "source": source})

    problem(submit("s3://secrets/a.png"), 403, "source_forbidden")
    problem(submit("s3://media/private/a.png"), 403, "source_forbidden")
    problem(submit("s3://media/", "prefix"), 403, "source_forbidden")
    problem(submit("s3://media/pub*/a.png", "prefix"), 403, "source_forbidden")
    problem(submit("https://example.org/a.png"), 403, "source_disabled")
    assert submit("s3://media/public/a.png").status_code == 202
    missing = {"type": "files", "file_ids": ["file-" + "0" * 32]}
    error = problem(http.post("/v1/jobs", json={"kind": "ocr", "source": missing}), 404, "media_not_found")
    assert error["param"] == "source.file_ids.0"


def test_too_many_media_and_used_up_quotas(api: Served, http: httpx2.Client) -> None:
    small = api.settings.model_copy(update={"max_items_per_request": 2})
    media = [{"url": f"s3://scans/{n}.png"} for n in range(3)]
    with serving(small) as (url, _), httpx2.Client(base_url=url, headers=dict(http.headers)) as client:
        answer = client.post("/v1/jobs", json={"kind": "ocr", "source": {"type": "media", "media": media}})
        assert "manifest" in problem(answer, 413, "request_too_large")["message"]
    busy = add_caller(api.database, "busy", max_active_items=2)
    with api.http(busy.key) as client:
        answer = client.post("/v1/jobs", json={"kind": "ocr", "source": {"type": "media", "media": media}})
        problem(answer, 429, "quota_exceeded")
        assert answer.headers["x-should-retry"] == "false"


def test_bodies_are_counted_while_they_are_read(api: Served, http: httpx2.Client) -> None:
    small = api.settings.model_copy(update={"max_body_bytes": 1_000})

    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 100

    with serving(small) as (url, _), httpx2.Client(base_url=url, headers=dict(http.headers)) as client:
        problem(client.post("/v1/jobs", json={"a": "x" * 2_000}), 413, "request_too_large")
        unsized = client.post("/v1/jobs", content=chunks(), headers={"content-type": "application/json"})
        problem(unsized, 413, "request_too_large")


def test_keys_that_are_missing_or_wrong(api: Served) -> None:
    with httpx2.Client(base_url=api.url) as client:
        answer = client.get("/v1/jobs")
        problem(answer, 401, "unauthenticated")
        assert answer.headers["www-authenticate"].startswith("Bearer")
        for header in ("Bearer", "Basic x", "Bearer bs_x_y", "Bearer " + "x" * 10_000, "bearer bs__"):
            answer = client.get("/v1/jobs", headers=[("authorization", header)])
            problem(answer, 401, "unauthenticated")


def test_a_key_does_only_what_its_scopes_say(api: Served) -> None:
    reader = add_caller(api.database, "reader", scopes=("jobs:read",))
    with api.http(reader.key) as client:
        assert client.get("/v1/jobs").status_code == 200
        error = problem(client.post("/v1/jobs", json=OCR), 403, "forbidden")
        assert "jobs:write" in error["message"]
        problem(client.get("/v1/files"), 403, "forbidden")
        problem(client.get("/v1/admin/tenants"), 403, "forbidden")


def test_a_failure_inside_says_nothing_of_it(api: Served) -> None:
    async def boom() -> None:
        raise RuntimeError("the secret is 42")

    api.app.add_api_route("/boom", boom)
    with api.http() as client:
        answer = client.get("/boom")
        problem(answer, 500, "internal_error")
        assert "42" not in answer.text


def test_every_request_error_has_a_status() -> None:
    def tree(kind: type[BatchsightError]) -> Iterator[type[BatchsightError]]:
        yield kind
        for child in kind.__subclasses__():
            yield from tree(child)

    missing = {kind.code for kind in tree(RequestError)} - set(STATUS)
    assert not missing


def test_a_database_that_is_away_is_said_so(api: Served) -> None:
    gone = api.settings.model_copy(update={"database_url": "postgresql://127.0.0.1:9/none"})
    with serving(gone) as (url, _), httpx2.Client(base_url=url, timeout=30) as client:
        answer = client.get("/v1/jobs", headers={"authorization": f"Bearer {api.caller.key}"})
        problem(answer, 503, "store_unavailable")
        assert answer.headers["retry-after"].isdigit()
        ready = client.get("/readyz")
        assert ready.status_code == 503
        assert ready.json()["database"] == "unavailable"
        assert client.get("/healthz").status_code == 200
