"""Server-sent events of a job."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from typing import Any

import httpx2

from tests.api.conftest import PEPPER, Served
from tests.api.work import MISSING, HandWorker

OCR = {"kind": "ocr", "source": {"type": "prefix", "url": "s3://scans/"}}


def parsed(text: str) -> list[dict[str, str]]:
    """Events as the standard reads them: fields of a block, comments dropped."""
    events = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            events.append(fields)
    return events


def test_every_version_is_an_event_until_the_end(api: Served, http: httpx2.Client) -> None:
    job = http.post("/v1/jobs", json=OCR).json()
    worker = HandWorker(api.database, job["id"])
    received: list[str] = []
    first = threading.Event()

    def follow() -> None:
        with http.stream("GET", f"/v1/jobs/{job['id']}/events", timeout=60) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            for piece in answer.iter_text():
                received.append(piece)
                if "event: job" in piece:
                    first.set()

    thread = threading.Thread(target=follow)
    thread.start()
    assert first.wait(30)
    worker.plan(["a.png", "b.png"])
    worker.finish({0: "x", 1: MISSING})
    thread.join(60)
    events = parsed("".join(received))
    assert events[0] == {"retry": "2000"}
    jobs: list[dict[str, Any]] = [json.loads(event["data"]) for event in events if event.get("event") == "job"]
    versions = [found["version"] for found in jobs]
    assert versions == sorted(set(versions))
    assert [event["id"] for event in events if event.get("event") == "job"] == [str(version) for version in versions]
    assert jobs[0]["state"] == "queued"
    assert jobs[-1]["state"] == "partial"
    assert jobs[-1] == http.get(f"/v1/jobs/{job['id']}").json()
    assert events[-1]["event"] == "end"
    assert events[-1]["data"] == "partial"


def test_a_stream_resumes_behind_the_last_event(api: Served, http: httpx2.Client) -> None:
    job = http.post("/v1/jobs", json=OCR).json()
    worker = HandWorker(api.database, job["id"])
    worker.plan(["a.png"])
    worker.finish({0: "x"})
    path = f"/v1/jobs/{job['id']}/events"
    whole = parsed(http.get(path).text)
    assert [event.get("event") for event in whole] == [None, "job", "end"]
    version = whole[1]["id"]
    again = parsed(http.get(path, headers={"last-event-id": version}).text)
    assert [event.get("event") for event in again] == [None, "end"]
    earlier = parsed(http.get(path, headers={"last-event-id": str(int(version) - 1)}).text)
    assert [event.get("event") for event in earlier] == [None, "job", "end"]
    assert http.get("/v1/jobs/01a20b88-d08c-70dc-ad21-3c0664f4e867/events").status_code == 404


def test_a_stopping_server_waits_for_no_watcher(api: Served, http: httpx2.Client) -> None:
    job = http.post("/v1/jobs", json=OCR).json()
    settings = api.settings
    secret = settings.s3_secret_access_key
    process = subprocess.Popen(
        [sys.executable, "-m", "api", "--port", "0"],
        env={
            **os.environ,
            "DATABASE_URL": settings.database_url,
            "REDIS_URL": settings.redis_url,
            "S3_ENDPOINT_URL": str(settings.s3_endpoint_url),
            "AWS_ACCESS_KEY_ID": str(settings.s3_access_key_id),
            "AWS_SECRET_ACCESS_KEY": secret.get_secret_value() if secret else "",
            "BATCHSIGHT_API_KEY_PEPPER": PEPPER,
        },
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    address = next(found[1] for line in process.stderr if (found := re.search(r"running on (http://[0-9.:]+)", line)))
    with httpx2.stream(
        "GET", f"{address}/v1/jobs/{job['id']}/events", headers=dict(http.headers), timeout=60
    ) as answer:
        pieces = answer.iter_text()
        assert "event: job" in next(pieces) + next(pieces, "")
        process.send_signal(signal.SIGTERM)
        assert "event: end" not in "".join(pieces)  # the stream ends although the job does not
    assert process.wait(25) == 0  # within the grace time that a request that works would be given
    process.stderr.close()
