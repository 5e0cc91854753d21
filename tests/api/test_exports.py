"""Exports over HTTP: asked for with a job or after it, followed, downloaded; what is forbidden."""

from __future__ import annotations

import hashlib
import json
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from api.cli.exits import ExitCode
from api.cli.main import main
from api.client import Client
from pipelines.settings import Settings
from pipelines.store import export_leases
from pipelines.store.session import Database
from tests.api.conftest import Served, add_caller, serving
from tests.api.work import MISSING, HandWorker
from workers.wiring import cpu_runtime

OCR = {"kind": "ocr", "source": {"type": "prefix", "url": "s3://scans/"}}


@pytest.fixture
def out(s3: Any) -> str:
    """A bucket that tenants may export to."""
    name = f"out-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=name)
    return name


@pytest.fixture
def settings(settings: Settings, out: str) -> Settings:
    return settings.model_copy(update={"export_buckets": (out,)})


@pytest.fixture
def exporting(settings: Settings, database: Database) -> Iterator[None]:
    """What the dispatcher and a cpu worker do, in a thread."""
    stop = threading.Event()
    runtime = cpu_runtime(settings)

    def rounds() -> None:
        while not stop.wait(0.02):
            with database.begin() as conn:
                found = export_leases.pick(conn, limit=4, most=4)
            for export_id in found:
                runtime.export(export_id)

    thread = threading.Thread(target=rounds)
    thread.start()
    yield
    stop.set()
    thread.join(30)
    runtime.close()


def finished(http: httpx2.Client, link: str) -> dict[str, Any]:
    until = time.monotonic() + 60
    while True:
        body: dict[str, Any] = http.get(link).json()
        if body["state"] in {"succeeded", "failed", "cancelled"}:
            return body
        assert time.monotonic() < until, body
        time.sleep(0.02)


def answered(api: Served, job_id: str, count: int = 5) -> HandWorker:
    worker = HandWorker(api.database, job_id)
    worker.plan([f"{n}.png" for n in range(count)], broken=["bad.png"])
    worker.finish({0: MISSING, **{n: f"text {n} ✓" for n in range(1, count)}})
    return worker


def test_a_job_is_exported_when_it_ends(api: Served, http: httpx2.Client, exporting: None, out: str, s3: Any) -> None:
    wish = {"url": f"s3://{out}/2026", "format": "jsonl"}
    job = http.post("/v1/jobs", json={**OCR, "export": wish}).json()
    (waiting,) = http.get(job["links"]["exports"]).json()["data"]
    assert waiting["state"] == "waiting"
    assert waiting["url"] == f"s3://{out}/2026/{job['id']}/{waiting['id']}/"
    answered(api, job["id"])
    ended = finished(http, waiting["links"]["self"])
    assert (ended["state"], ended["rows"], ended["errors"], ended["progress"]) == ("succeeded", 4, 2, 1.0)
    folder = ended["url"].removeprefix(f"s3://{out}/")

    def read(name: str) -> bytes:
        data: bytes = s3.get_object(Bucket=out, Key=folder + name)["Body"].read()
        return data

    manifest = json.loads(read("manifest.json"))
    shards = {shard["content"]: read(shard["name"]) for shard in manifest["shards"]}
    assert all(hashlib.sha256(shards[shard["content"]]).hexdigest() == shard["sha256"] for shard in manifest["shards"])
    everything = http.get(f"/v1/jobs/{job['id']}/results", params={"include": "all"}).text.splitlines()
    exported = [json.loads(line) for line in (shards["results"] + shards["errors"]).splitlines()]
    assert sorted(exported, key=lambda line: line["seq"]) == [json.loads(line) for line in everything]
    assert manifest["job"] == {
        "id": job["id"],
        "kind": "ocr",
        "state": "partial",
        "counts": {"succeeded": 4, "failed": 2, "cancelled": 0},
    }


def test_an_export_into_the_installations_store_is_downloaded(
    api: Served, http: httpx2.Client, exporting: None, client: Client
) -> None:
    job = http.post("/v1/jobs", json=OCR).json()
    answered(api, job["id"])
    made = client.exports.create(job["id"], format="files", content="text")
    assert made.url is None
    ended = client.exports.wait(job["id"], made.id, timeout=60)
    assert ended.state == "succeeded"
    manifest = json.loads(client.exports.content(job["id"], made.id))
    (index,) = [shard["name"] for shard in manifest["shards"] if shard["content"] == "files"]
    entries = [json.loads(line) for line in client.exports.content(job["id"], made.id, index).splitlines()]
    assert [entry["name"] for entry in entries] == [f"files/000000{n}-{n}.png.txt" for n in range(1, 5)]
    assert client.exports.content(job["id"], made.id, entries[0]["name"]).decode() == "text 1 ✓"
    path = f"/v1/jobs/{job['id']}/exports/{made.id}/content"
    for name in ("nothing.jsonl", "../../../x", "/manifest.json", "a\\b", "files"):
        assert http.get(path, params={"name": name}).status_code == 404, name
    assert [found.id for found in client.exports.list(job["id"])] == [made.id]


def test_where_a_tenant_may_not_write_is_refused_before_anything_is_stored(
    api: Served, http: httpx2.Client, out: str
) -> None:
    own = api.settings.blob_url.removeprefix("s3://").split("/")[0]
    for url in ("s3://scans/", "s3://media/public/", f"s3://{own}/blobs/packs/", f"s3://{own}/"):
        answer = http.post("/v1/jobs", json={**OCR, "export": {"url": url}})
        assert answer.status_code == 403, url
        assert answer.json()["error"]["code"] == "export_forbidden"
        assert answer.json()["error"]["param"] == "export.url"
    assert http.get("/v1/jobs").json()["data"] == []
    job = http.post("/v1/jobs", json=OCR).json()
    assert http.post(job["links"]["exports"], json={"url": "s3://scans/"}).status_code == 403
    assert http.post(job["links"]["exports"], json={"url": f"s3://{out}/x/"}).status_code == 202


def test_a_tenants_own_list_decides(api: Served) -> None:
    other = add_caller(api.database, "other", export_buckets=["mine/a"])
    with api.http(other.key) as http:
        job = http.post("/v1/jobs", json=OCR).json()
        for url, status in (("s3://mine/a/b/", 202), ("s3://mine/ab/", 403), ("s3://mine/", 403)):
            assert http.post(job["links"]["exports"], json={"url": url}).status_code == status, url


@pytest.mark.parametrize(
    ("wish", "param"),
    [
        ({"format": "xml"}, "format"),
        ({"format": "files", "compression": "gzip"}, "compression"),
        ({"content": "text"}, "content"),
        ({"shard_rows": 1}, "shard_rows"),
        ({"url": "s3://out/*/"}, "url"),
        ({"url": "s3://out/../x/"}, "url"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_wish_that_makes_no_sense_is_refused_by_its_field(
    http: httpx2.Client, wish: dict[str, Any], param: str
) -> None:
    job = http.post("/v1/jobs", json=OCR).json()
    answer = http.post(job["links"]["exports"], json=wish)
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == param
    assert http.post("/v1/jobs", json={**OCR, "export": wish}).json()["error"]["param"] == f"export.{param}"


def test_exports_of_others_are_not_there(api: Served, http: httpx2.Client) -> None:
    job = http.post("/v1/jobs", json=OCR).json()
    export = http.post(job["links"]["exports"]).json()
    stranger = add_caller(api.database, "stranger")
    with api.http(stranger.key) as other:
        own = other.post("/v1/jobs", json=OCR).json()
        for method, path in [
            ("POST", job["links"]["exports"]),
            ("GET", job["links"]["exports"]),
            ("GET", export["links"]["self"]),
            ("POST", export["links"]["cancel"]),
            ("GET", export["links"]["content"]),
            ("GET", f"{own['links']['exports']}/{export['id']}"),
        ]:
            answer = other.request(method, path)
            assert answer.status_code == 404, path
            assert answer.json()["error"]["code"] == "not_found"


def test_an_export_is_asked_for_once_by_its_key_and_cancelled_once(http: httpx2.Client) -> None:
    job = http.post("/v1/jobs", json=OCR).json()
    headers = {"idempotency-key": "once"}
    first = http.post(job["links"]["exports"], json={}, headers=headers)
    again = http.post(job["links"]["exports"], json={}, headers=headers)
    assert first.status_code == again.status_code == 202
    assert first.json() == again.json()
    assert first.headers["location"] == first.json()["links"]["self"]
    assert again.headers["idempotent-replayed"] == "true"
    link = first.json()["links"]
    assert http.get(link["content"]).status_code == 409
    assert http.post(link["cancel"]).json()["state"] == "cancelled"
    assert http.post(link["cancel"]).status_code == 409


def test_a_job_has_so_many_exports_and_they_are_listed_in_pages(http: httpx2.Client) -> None:
    job = http.post("/v1/jobs", json=OCR).json()
    made = [http.post(job["links"]["exports"]).json()["id"] for _ in range(20)]
    answer = http.post(job["links"]["exports"])
    assert answer.status_code == 429
    assert answer.json()["error"]["code"] == "quota_exceeded"
    page = http.get(job["links"]["exports"], params={"limit": 15}).json()
    rest = http.get(job["links"]["exports"], params={"after": page["last_id"]}).json()
    assert [entry["id"] for entry in page["data"] + rest["data"]] == made[::-1]
    assert (page["has_more"], rest["has_more"]) == (True, False)


def test_a_bucket_that_is_not_there_ends_the_export_with_a_word(
    api: Served, settings: Settings, database: Database, http: httpx2.Client
) -> None:
    job = http.post("/v1/jobs", json=OCR).json()
    answered(api, job["id"])
    nowhere = settings.model_copy(update={"export_buckets": ("nowhere-at-all",)})
    with serving(nowhere) as (url, _), httpx2.Client(base_url=url, headers=http.headers) as other:
        made = other.post(job["links"]["exports"], json={"url": "s3://nowhere-at-all/"}).json()
    runtime = cpu_runtime(nowhere)
    runtime.export(uuid.UUID(made["id"]))
    runtime.close()
    body = http.get(made["links"]["self"]).json()
    assert (body["state"], body["error"]["code"]) == ("failed", "export_forbidden")


def test_the_command_line_exports_and_downloads(
    api: Served,
    http: httpx2.Client,
    exporting: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("BATCHSIGHT_URL", api.url)
    monkeypatch.setenv("BATCHSIGHT_API_KEY", api.caller.key)
    job = http.post("/v1/jobs", json=OCR).json()
    answered(api, job["id"])
    code = main(["export", job["id"], "--format", "parquet", "--wait", "--timeout", "60", "--json"])
    assert code == ExitCode.OK
    shown = json.loads(capsys.readouterr().out.splitlines()[-1])  # the served api logs there too
    assert (shown["state"], shown["rows"], shown["format"]) == ("succeeded", 4, "parquet")
    assert main(["export", job["id"], "-f", "files", "-o", str(tmp_path / "got"), "--timeout", "60"]) == ExitCode.OK
    assert (tmp_path / "got/files/0000001-1.png.md").read_text() == "text 1 ✓\n"
    assert (tmp_path / "got/manifest.json").exists()
    assert main(["export", job["id"], "s3://scans/"]) == ExitCode.AUTH
    capsys.readouterr()
    assert main(["exports", job["id"]]) == ExitCode.OK
    assert capsys.readouterr().out.count("succeeded") == 2
