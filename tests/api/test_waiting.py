"""Long polling: news at once, thousands of waiting requests, one connection to the database for all of them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import resource
import time

import httpx2
import pytest
from sqlalchemy import text

from tests.api.conftest import Served, add_caller, serving
from tests.api.work import HandWorker

OCR = {"kind": "ocr", "source": {"type": "prefix", "url": "s3://scans/"}}


def test_a_waiting_request_is_answered_when_the_job_changes(api: Served, http: httpx2.Client) -> None:
    job = http.post("/v1/jobs", json=OCR).json()
    path = f"/v1/jobs/{job['id']}"
    etag = http.get(path).headers["etag"]
    worker = HandWorker(api.database, job["id"])
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(http.get, path, params={"wait": 30}, headers={"if-none-match": etag})
        worker.plan(["a.png"])
        answer = waiting.result(40)
    assert answer.status_code == 200
    assert answer.headers["etag"] != etag
    assert answer.json()["version"] > job["version"]


def test_without_an_etag_waiting_means_until_the_end(api: Served, http: httpx2.Client) -> None:
    job = http.post("/v1/jobs", json=OCR).json()
    worker = HandWorker(api.database, job["id"])
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(http.get, f"/v1/jobs/{job['id']}", headers={"prefer": "respond-async, wait=30"})
        worker.plan(["a.png"])
        worker.finish({0: "text"})
        answer = waiting.result(40)
    assert answer.json()["state"] == "succeeded"
    assert answer.headers["preference-applied"] == "wait=30"
    assert "retry-after" not in answer.headers


def test_a_wait_that_brings_nothing_ends_unchanged(http: httpx2.Client) -> None:
    job = http.post("/v1/jobs", json=OCR).json()
    path = f"/v1/jobs/{job['id']}"
    etag = http.get(path).headers["etag"]
    assert http.get(path, params={"wait": 1}, headers={"if-none-match": etag}).status_code == 304
    assert http.get(path, params={"wait": 61}).status_code == 422


def test_an_ended_job_answers_at_once(api: Served, http: httpx2.Client) -> None:
    job = http.post("/v1/jobs", json=OCR).json()
    worker = HandWorker(api.database, job["id"])
    worker.plan(["a.png"])
    worker.finish({0: "text"})
    path = f"/v1/jobs/{job['id']}"
    answer = http.get(path, params={"wait": 60}, timeout=20)
    assert answer.status_code == 200
    assert http.get(path, params={"wait": 60}, headers={"if-none-match": answer.headers["etag"]}).status_code == 304


def test_replicas_answer_alike(api: Served, http: httpx2.Client) -> None:
    job = http.post("/v1/jobs", json=OCR).json()
    worker = HandWorker(api.database, job["id"])
    worker.plan(["a.png", "b.png"])
    worker.finish({0: "text"})
    with serving(api.settings) as (other, _), httpx2.Client(base_url=other, headers=dict(http.headers)) as there:
        here, far = (client.get(f"/v1/jobs/{job['id']}") for client in (http, there))
        assert here.json() == far.json()
        assert here.headers["etag"] == far.headers["etag"]
        assert here.json()["eta_seconds"] is not None
        waited = there.get(f"/v1/jobs/{job['id']}", headers={"if-none-match": here.headers["etag"]})
        assert waited.status_code == 304


def test_a_lost_listening_connection_is_made_up_for(api: Served, http: httpx2.Client) -> None:
    job = http.post("/v1/jobs", json=OCR).json()
    path = f"/v1/jobs/{job['id']}"
    etag = http.get(path).headers["etag"]
    worker = HandWorker(api.database, job["id"])
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(http.get, path, params={"wait": 50}, headers={"if-none-match": etag}, timeout=70)
        with api.database.begin() as conn:
            conn.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE application_name = 'batchsight-api-listen' AND datname = current_database()"
                )
            )
        worker.plan(["a.png"])
        assert waiting.result(70).status_code == 200


@pytest.mark.slow
def test_two_thousand_wait_without_a_connection_each(api: Served, http: httpx2.Client) -> None:
    pollers = 2_000
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 16_384), hard))
    job = http.post("/v1/jobs", json=OCR).json()
    etag = http.get(f"/v1/jobs/{job['id']}").headers["etag"]
    worker = HandWorker(api.database, job["id"])
    port = int(api.url.rsplit(":", 1)[1])
    request = (
        f"GET /v1/jobs/{job['id']}?wait=60 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.caller.key}\r\n"
        f"If-None-Match: {etag}\r\nConnection: close\r\n\r\n"
    ).encode()

    def metric(name: str) -> float:
        lines = http.get("/metrics").text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))

    def connections() -> int:
        with api.database.begin() as conn:
            found = conn.execute(
                text(
                    "SELECT count(*) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND application_name LIKE 'batchsight-api%'"
                )
            )
            return int(found.scalar_one())

    async def poll(gate: asyncio.Semaphore) -> bytes:
        async with gate:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            await writer.drain()
        answer = await reader.read()
        writer.close()
        return answer.split(b"\r\n", 1)[0]

    async def all_of_them() -> list[bytes]:
        gate = asyncio.Semaphore(50)
        tasks = [asyncio.create_task(poll(gate)) for _ in range(pollers)]
        until = time.monotonic() + 50
        while await asyncio.to_thread(metric, "batchsight_api_long_polls") < pollers and time.monotonic() < until:
            await asyncio.sleep(0.2)
        assert await asyncio.to_thread(metric, "batchsight_api_long_polls") == pollers
        assert await asyncio.to_thread(connections) <= 20
        await asyncio.to_thread(worker.plan, ["a.png"])
        return list(await asyncio.gather(*tasks))

    answers = asyncio.run(all_of_them())
    assert set(answers) == {b"HTTP/1.1 200 OK"}


def test_polls_are_answered_alike_from_memory_and_from_the_database(api: Served, http: httpx2.Client) -> None:
    job = http.post("/v1/jobs", json=OCR).json()
    path = f"/v1/jobs/{job['id']}"
    whole = http.get(path)
    short = http.get(path)
    told = {name: value for name, value in whole.headers.items() if name not in {"x-request-id", "ratelimit", "date"}}
    assert {name: short.headers.get(name) for name in told} == told
    assert short.json() == whole.json()
    unchanged = http.get(path, headers={"if-none-match": whole.headers["etag"]})
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    assert unchanged.headers["x-request-id"].startswith("req_")
    rows = http.get("/metrics").text
    assert 'route="/v1/jobs/{job_id}",status="304"' in rows


def test_what_is_kept_in_memory_never_hides_a_change_a_tenant_or_a_revocation(api: Served, http: httpx2.Client) -> None:
    job = http.post("/v1/jobs", json=OCR).json()
    path = f"/v1/jobs/{job['id']}"
    for _ in range(3):
        before = http.get(path)
    other = add_caller(api.database, "other")
    with api.http(other.key) as stranger:
        assert [stranger.get(path).status_code for _ in range(3)] == [404] * 3
    http.post(f"{path}/cancel")
    after = http.get(path, headers={"if-none-match": before.headers["etag"]})
    assert after.status_code == 200
    assert after.json()["cancel_requested_at"] is not None
    with api.database.begin() as conn:
        conn.execute(text("UPDATE api_keys SET revoked_at = now()"))
    until = time.monotonic() + 30
    while http.get(path).status_code != 401:
        assert time.monotonic() < until, "a revoked key works for a few seconds at most"
        time.sleep(0.2)


def test_many_polls_at_once_are_all_counted_and_refused_beyond_the_rate(api: Served) -> None:
    slow = add_caller(api.database, "slow", requests_per_minute=40)
    with api.http(slow.key) as client:
        path = f"/v1/jobs/{client.post('/v1/jobs', json=OCR).json()['id']}"
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            statuses = list(pool.map(lambda _: client.get(path).status_code, range(80)))
    assert 39 <= statuses.count(200) <= 60  # the window moves on while it is asked
    assert statuses.count(200) + statuses.count(429) == 80
