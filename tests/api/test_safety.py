"""Idempotency, rate limits, revocation, and a Redis that is away."""

from __future__ import annotations

import concurrent.futures
import re
import uuid

import httpx2

from api.auth import Authenticator
from tests.api.conftest import PEPPER, Served, add_caller, serving
from tests.api.work import MISSING, HandWorker

OCR = {"kind": "ocr", "source": {"type": "media", "media": [{"url": "s3://scans/a.png"}]}}


def count_jobs(http: httpx2.Client) -> int:
    return len(http.get("/v1/jobs", params={"limit": 1000}).json()["data"])


def test_a_repeated_submission_is_one_job(http: httpx2.Client) -> None:
    key = str(uuid.uuid4())
    first = http.post("/v1/jobs", json=OCR, headers={"idempotency-key": key})
    second = http.post("/v1/jobs", json=dict(reversed(OCR.items())), headers={"idempotency-key": f'"{key}"'})
    assert (first.status_code, second.status_code) == (202, 202)
    assert second.json() == first.json()
    assert second.headers["location"] == first.headers["location"]
    assert second.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    assert count_jobs(http) == 1


def test_a_key_belongs_to_one_payload_and_one_tenant(api: Served, http: httpx2.Client) -> None:
    headers = {"idempotency-key": "mine"}
    http.post("/v1/jobs", json=OCR, headers=headers)
    other = http.post("/v1/jobs", json={**OCR, "priority": "bulk"}, headers=headers)
    assert other.status_code == 422
    assert other.json()["error"]["code"] == "idempotency_mismatch"
    stranger = add_caller(api.database, "stranger")
    with api.http(stranger.key) as client:
        assert client.post("/v1/jobs", json=OCR, headers=headers).status_code == 202
        assert count_jobs(client) == 1


def test_a_refused_submission_keeps_no_key(http: httpx2.Client) -> None:
    headers = {"idempotency-key": "again"}
    assert http.post("/v1/jobs", json={**OCR, "kind": "none"}, headers=headers).status_code == 422
    assert http.post("/v1/jobs", json=OCR, headers=headers).status_code == 202


def test_bad_keys_are_refused(http: httpx2.Client) -> None:
    for key in ("", '""', "a b", "x" * 256):
        answer = http.post("/v1/jobs", json=OCR, headers={"idempotency-key": key})
        assert answer.status_code == 422, key
        assert answer.json()["error"]["param"] == "Idempotency-Key"


def test_simultaneous_repetitions_make_one_job(api: Served, http: httpx2.Client) -> None:
    def submit(_: int) -> int:
        with api.http() as client:
            return client.post("/v1/jobs", json=OCR, headers={"idempotency-key": "race"}).status_code

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        statuses = set(pool.map(submit, range(16)))
    assert statuses <= {202, 409}
    assert 202 in statuses
    assert count_jobs(http) == 1


def test_redriving_twice_under_one_key_is_one_child(api: Served, http: httpx2.Client) -> None:
    job = http.post("/v1/jobs", json=OCR).json()
    worker = HandWorker(api.database, job["id"])
    worker.plan(["a.png"])
    worker.finish({0: MISSING})
    path, headers = f"/v1/jobs/{job['id']}/redrive", {"idempotency-key": "once"}
    first = http.post(path, headers=headers)
    second = http.post(path, headers=headers)
    assert first.status_code == second.status_code == 202
    assert first.json()["id"] == second.json()["id"]


def test_the_rate_is_limited_and_said(api: Served) -> None:
    slow = add_caller(api.database, "slow", requests_per_minute=3)
    with api.http(slow.key) as client:
        answers = [client.get("/v1/jobs") for _ in range(5)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
        assert answers[0].headers["ratelimit-policy"] == '"default";q=3;w=60'
        assert re.fullmatch(r'"default";r=2;t=\d+', answers[0].headers["ratelimit"])
        refused = answers[-1]
        assert refused.json()["error"]["code"] == "rate_limited"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.headers["ratelimit"].startswith('"default";r=0')


def test_replicas_count_together(api: Served) -> None:
    slow = add_caller(api.database, "slow", requests_per_minute=2)
    headers = {"authorization": f"Bearer {slow.key}"}
    with serving(api.settings) as (other, _), httpx2.Client(base_url=other, headers=headers) as there:
        assert httpx2.get(f"{api.url}/v1/jobs", headers=headers).status_code == 200
        assert there.get("/v1/jobs").status_code == 200
        assert there.get("/v1/jobs").status_code == 429


def test_a_submission_succeeds_while_redis_is_away(api: Served, http: httpx2.Client) -> None:
    alone = api.settings.model_copy(update={"redis_url": "redis://127.0.0.1:9/0"})
    with serving(alone) as (url, _), httpx2.Client(base_url=url, headers=dict(http.headers), timeout=30) as client:
        answer = client.post("/v1/jobs", json=OCR)
        assert answer.status_code == 202
        assert "ratelimit" in answer.headers
        assert client.post(f"/v1/jobs/{answer.json()['id']}/cancel").status_code == 200
        ready = client.get("/readyz")
        assert ready.status_code == 200
        assert ready.json()["redis"] == "unavailable"
        metrics = client.get("/metrics").text
        assert "batchsight_api_hints_lost_total 2.0" in metrics
        assert "batchsight_api_rate_limit_fallbacks_total" in metrics
    slow = add_caller(api.database, "slow", requests_per_minute=2)
    headers = {"authorization": f"Bearer {slow.key}"}
    with serving(alone) as (url, _), httpx2.Client(base_url=url, headers=headers, timeout=30) as client:
        assert [client.get("/v1/jobs").status_code for _ in range(3)] == [200, 200, 429]


def test_a_plan_hint_reaches_the_queue(api: Served, http: httpx2.Client) -> None:
    import redis

    with redis.Redis.from_url(api.settings.redis_url) as broker:
        http.post("/v1/jobs", json=OCR)
        assert broker.llen("cpu") == 1
        listed = {"type": "prefix", "url": "s3://scans/"}
        http.post("/v1/jobs", json={**OCR, "source": listed, "priority": "interactive"})
        assert broker.llen("cpu.interactive") == 1


def test_a_revoked_key_opens_nothing(api: Served, http: httpx2.Client) -> None:
    made = http.post(
        "/v1/admin/keys", json={"tenant_id": str(api.caller.tenant_id), "name": "spare", "scopes": ["jobs:read"]}
    ).json()
    assert made["key"].startswith(f"bs_{made['prefix']}_")
    assert http.delete(f"/v1/admin/keys/{made['id']}", params={"tenant_id": str(api.caller.tenant_id)}).json() == {
        "id": made["id"],
        "revoked": True,
    }
    with api.http(made["key"]) as client:  # never used before: no replica remembers it
        assert client.get("/v1/jobs").status_code == 401
    listed = http.get("/v1/admin/keys", params={"tenant_id": str(api.caller.tenant_id)}).json()["data"]
    assert [key["revoked_at"] is None for key in listed] == [True, False]
    assert "digest" not in str(listed)
    assert made["key"] not in str(listed)


def test_a_good_key_is_remembered_for_a_few_seconds_only(api: Served) -> None:
    import asyncio

    import anyio

    from api.services import transact

    asked: list[int] = []

    async def run() -> None:
        threads = anyio.CapacityLimiter(1)

        async def counted(work):  # type: ignore[no-untyped-def]  # the test's own closure
            asked.append(1)
            return await transact(api.database, threads, work)

        remembering = Authenticator(counted, pepper=PEPPER, remember=60)
        for _ in range(3):
            await remembering.authenticate(f"Bearer {api.caller.key}")
        assert len(asked) == 1
        forgetting = Authenticator(counted, pepper=PEPPER, remember=0)
        for _ in range(3):
            await forgetting.authenticate(f"Bearer {api.caller.key}")
        assert len(asked) == 4

    asyncio.run(run())


def test_tenants_are_made_by_operators(http: httpx2.Client, api: Served) -> None:
    made = http.post("/v1/admin/tenants", json={"name": "north", "allowed_buckets": ["north/in"]})
    assert made.status_code == 201
    assert made.json()["allowed_buckets"] == ["north/in"]
    assert http.post("/v1/admin/tenants", json={"name": "north"}).status_code == 409
    assert [tenant["name"] for tenant in http.get("/v1/admin/tenants").json()["data"]] == ["acme", "north"]
    key = http.post("/v1/admin/keys", json={"tenant_id": made.json()["id"], "name": "k"}).json()["key"]
    with api.http(key) as client:
        own = {"kind": "ocr", "source": {"type": "media", "media": [{"url": "s3://north/in/a.png"}]}}
        assert client.post("/v1/jobs", json=own).status_code == 202
        assert client.post("/v1/jobs", json=OCR).json()["error"]["code"] == "source_forbidden"
