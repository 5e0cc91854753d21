"""A dry run over HTTP: counted as the plan would count, estimated from what is known, nothing stored."""

from __future__ import annotations

import itertools
import json
import uuid
from typing import Any

import httpx2
import pytest

from api.cli.exits import ExitCode
from api.cli.main import main
from api.client import Client
from pipelines.jobs.ids import uuid7
from pipelines.jobs.models import JobPriority, JobSpec
from pipelines.kinds import registry
from pipelines.settings import Settings
from pipelines.steps.access import AccessRules
from pipelines.steps.estimate import listed
from pipelines.steps.plan import PlanTools
from pipelines.store.session import Database
from pipelines.store.workers import Worker, announce
from tests.api.conftest import Served, add_caller
from tests.api.work import HandWorker
from tests.api.worker_thread import working
from tests.unit.media.samples import encoded, noise

TABLES = ("jobs", "job_progress", "documents", "items", "exports", "files", "idempotency_keys")


@pytest.fixture
def settings(settings: Settings, bucket: str) -> Settings:
    return settings.model_copy(update={"allowed_buckets": (bucket, "scans")})


def put(s3: Any, bucket: str, *names: str, size: int = 10) -> None:
    for name in names:
        s3.put_object(Bucket=bucket, Key=name, Body=b"x" * size)


def dry(http: httpx2.Client, url: str, kind: str = "ocr", **parameters: Any) -> dict[str, Any]:
    source = {"type": "prefix", "url": url}
    answer = http.post("/v1/jobs", json={"kind": kind, "source": source, "parameters": parameters, "dry_run": True})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def rows(database: Database) -> dict[str, int]:
    with database.begin() as conn:
        return {table: conn.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one() for table in TABLES}


def test_a_prefix_is_counted_and_nothing_is_stored(api: Served, http: httpx2.Client, s3: Any, bucket: str) -> None:
    put(s3, bucket, "in/a.png", "in/b.jpg", "in/c.pdf", "in/notes.txt", "in/clip.mp4", "out.png", size=100)
    before = rows(api.database)
    body = dry(http, f"s3://{bucket}/in/", max_tiles=4)
    assert (body["documents"], body["documents_to_page"], body["skipped"]) == (3, 1, 2)
    assert body["complete"] is True
    assert body["bytes"] == 300
    assert body["items"] == {"expected": 3, "most": None}
    assert body["tiles"] == {"expected": 15, "most": None}  # four tiles and a thumbnail each
    assert body["basis"]["of"] == "limits"
    assert (body["seconds"], body["device_seconds"], body["cost"]) == (None, None, None)
    assert rows(api.database) == before


def test_without_pages_the_most_is_known(http: httpx2.Client, s3: Any, bucket: str) -> None:
    put(s3, bucket, "a.png", "b.png")
    body = dry(http, f"s3://{bucket}/", max_tiles=1, generation={"max_new_tokens": 50}, prompt="Read.")
    assert body["items"] == {"expected": 2, "most": 2}
    assert body["tiles"] == {"expected": 2, "most": 2}
    assert body["completion_tokens"] == {"expected": 100, "most": 100}
    words = len(b"<image>\nRead.")
    assert body["prompt_tokens"]["most"] == 2 * (256 + words)


def test_frames_and_questions_of_videos_are_counted(http: httpx2.Client, s3: Any, bucket: str) -> None:
    put(s3, bucket, "a.mp4")
    body = dry(http, f"s3://{bucket}/", "video_qa", questions=["What?", "Why?"], num_segments=8)
    assert body["tiles"]["most"] == 8
    assert body["completion_tokens"]["most"] == 2 * 1024
    assert body["prompt_tokens"]["most"] > 2 * 8 * 256


def test_own_results_of_late_are_what_is_expected(api: Served, http: httpx2.Client, s3: Any, bucket: str) -> None:
    job = http.post("/v1/jobs", json={"kind": "ocr", "source": {"type": "prefix", "url": f"s3://{bucket}/"}}).json()
    worker = HandWorker(api.database, job["id"])
    worker.plan([("book.pdf", 20), ("letter.pdf", 4)])
    worker.finish(dict.fromkeys(range(24), "text"), tokens=7)
    with api.database.begin() as conn:
        for name, draining in (("g1", False), ("g2", False), ("g3", True)):
            announce(conn, Worker(worker_id=name, role="gpu", slots=4, draining=draining))
    put(s3, bucket, "new/a.pdf", "new/b.png")
    body = dry(http, f"s3://{bucket}/new/")
    assert body["basis"] == {"of": "tenant", "jobs": 1, "results": 24, "items_a_document": 12.0, "engines": 2}
    assert body["items"]["expected"] == 13
    assert body["tiles"]["expected"] == 13 * 3
    assert body["prompt_tokens"]["expected"] == 13 * 100
    assert body["completion_tokens"]["expected"] == 13 * 7
    assert body["device_seconds"] == 6.5
    assert body["seconds"] == 3.2
    stranger = add_caller(api.database, "stranger")
    with api.http(stranger.key) as other:
        assert dry(other, f"s3://{bucket}/new/")["basis"]["of"] == "limits"  # 24 results of one tenant tell too much


def test_a_manifest_an_upload_and_a_chat_are_estimated(api: Served, http: httpx2.Client) -> None:
    upload = http.post("/v1/files", files={"file": ("a.png", b"png")}, data={"purpose": "user_data"}).json()["id"]
    lines = "\n".join(
        json.dumps(entry)
        for entry in (
            {"url": "s3://scans/a.png", "overrides": {"max_tiles": 2}},
            {"url": "s3://scans/b.png"},
            {"url": "s3://elsewhere/b.png"},
        )
    )
    for kind, source, parameters, wanted in (
        ("ocr", {"type": "manifest", "inline": lines, "format": "jsonl"}, {"max_tiles": 1}, (3, 1, 4)),
        ("ocr", {"type": "files", "file_ids": [upload]}, {"max_tiles": 1}, (1, 0, 1)),
        ("ocr", {"type": "media", "media": [{"file_id": upload, "id": "x"}]}, {"max_tiles": 1}, (1, 0, 1)),
        ("chat", {"type": "none"}, {"messages": [{"role": "user", "content": "hi"}]}, (1, 0, 0)),
    ):
        body = {"kind": kind, "source": source, "parameters": parameters, "dry_run": True}
        answer = http.post("/v1/jobs", json=body)
        assert answer.status_code == 200, answer.text
        shown = answer.json()
        assert (shown["documents"], shown["unusable"], shown["tiles"]["expected"]) == wanted, source
    assert http.get("/v1/jobs").json()["data"] == []


def test_what_would_be_refused_is_refused(api: Served, http: httpx2.Client, bucket: str) -> None:
    for change, status in (
        ({"source": {"type": "prefix", "url": "s3://elsewhere/"}}, 403),
        ({"parameters": {"max_tiles": 99}}, 422),
        ({"kind": "nonsense"}, 422),
        ({"export": {"url": "s3://elsewhere/"}}, 403),
        ({"source": {"type": "prefix", "url": "s3://scans/"}}, 404),  # allowed, but there is no such bucket
    ):
        body = {"kind": "ocr", "source": {"type": "prefix", "url": f"s3://{bucket}/"}, "dry_run": True, **change}
        assert http.post("/v1/jobs", json=body).status_code == status, change


def test_a_key_of_a_dry_run_is_free_for_the_job_itself(http: httpx2.Client, bucket: str) -> None:
    body = {"kind": "ocr", "source": {"type": "prefix", "url": f"s3://{bucket}/"}}
    headers = {"idempotency-key": "k"}
    assert http.post("/v1/jobs", json={**body, "dry_run": True}, headers=headers).status_code == 200
    assert http.post("/v1/jobs", json=body, headers=headers).status_code == 202


@pytest.mark.parametrize(("entries", "seconds", "seen"), [(40, 1e9, 40), (10**6, 2.5, 30), (10**6, 1e9, 95)])
def test_a_long_source_is_listed_within_the_bounds(entries: int, seconds: float, seen: int) -> None:
    parameters = registry.get("ocr").validate({})
    media = [{"url": f"s3://scans/{n}.png"} for n in range(95)]
    spec = JobSpec(
        job_id=uuid7(),
        tenant_id=uuid.uuid4(),
        kind="ocr",
        parameters=parameters,
        source={"type": "media", "media": media},
        priority=JobPriority.NORMAL,
    )
    tools = PlanTools(
        objects=None,
        open_manifest=lambda spec, source: pytest.fail("there is no manifest"),
        find_upload=lambda spec, address: None,
        rules=lambda spec: AccessRules(buckets=("scans",), https=False),
        batch=10,
    )
    ticks = itertools.count()
    found = listed(spec, tools, entries=entries, seconds=seconds, clock=lambda: float(next(ticks)))
    assert found.documents == seen
    assert found.complete == (seen == 95)
    assert found.most.tiles == seen * 13


def test_the_estimate_agrees_with_the_job_that_follows(
    api: Served, settings: Settings, client: Client, s3: Any, bucket: str
) -> None:
    for number in range(4):
        s3.put_object(Bucket=bucket, Key=f"in/{number}.png", Body=encoded(noise(64 + number, 64), "PNG"))
    source = {"type": "prefix", "url": f"s3://{bucket}/in/"}
    estimate = client.estimate("ocr", source=source)
    with working(settings, api.database):
        job = client.submit("ocr", source=source)
        ended = client.wait(job.id, timeout=120)
    assert ended.state == "succeeded"
    assert ended.total == estimate.items.expected == estimate.items.most
    assert estimate.tiles.most is not None
    assert 0 < ended.usage.tiles <= estimate.tiles.most
    assert ended.usage.prompt_tokens <= (estimate.prompt_tokens.most or 0)
    assert ended.usage.completion_tokens <= (estimate.completion_tokens.most or 0)


def test_the_command_line_estimates(
    api: Served,
    http: httpx2.Client,
    s3: Any,
    bucket: str,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("BATCHSIGHT_URL", api.url)
    monkeypatch.setenv("BATCHSIGHT_API_KEY", api.caller.key)
    put(s3, bucket, "a.png")
    assert main(["submit", "ocr", f"s3://{bucket}/", "--dry-run"]) == ExitCode.OK
    assert "items     about 1, at most 1" in capsys.readouterr().out
    assert main(["submit", "ocr", f"s3://{bucket}/", "--dry-run", "--json"]) == ExitCode.OK
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["items"]["most"] == 1
    local = tmp_path / "local.png"
    local.write_bytes(b"png")
    assert main(["submit", "ocr", str(local), "--dry-run"]) == ExitCode.USAGE
    assert http.get("/v1/files").json()["data"] == []
