"""Webhook endpoints over HTTP, with a real receiver on loopback; and what OpenAI's own client makes of them."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI
from standardwebhooks import Webhook

from api.client import AsyncClient, Client, Conflict, InvalidRequest, NotFound, RateLimited
from pipelines.settings import Settings
from pipelines.store.session import Database
from tests.api.conftest import Served, add_caller, serving
from tests.api.sending import for_loopback, sending
from tests.api.work import MISSING, HandWorker
from tests.api.worker_thread import working
from tests.integration.control.receiver import Receiver, receiving, say

SOURCE = {"type": "media", "media": [{"url": "s3://scans/a.png"}]}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return for_loopback(settings)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


@pytest.fixture
def sdk(api: Served) -> Iterator[OpenAI]:
    with OpenAI(
        base_url=f"{api.url}/v1", api_key=api.caller.key, max_retries=0, _strict_response_validation=True
    ) as made:
        yield made


def finished(api: Served, client: Client, answer: Any = "text", **options: Any) -> str:
    job = client.submit("ocr", source=SOURCE, **options)
    worker = HandWorker(api.database, job.id)
    worker.plan(["a.png"])
    worker.finish({0: answer})
    return job.id


def test_the_walk_of_an_endpoint(api: Served, client: Client, receiver: Receiver) -> None:
    made = client.webhooks.create(receiver.url, name="ci", event_types=["job.succeeded", "job.failed"])
    assert made.secret is not None
    assert made.secret.startswith("whsec_")
    assert made.secret.endswith(made.secret_hint[-4:])
    shown = client.webhooks.get(made.id)
    assert shown.secret is None
    assert [found.id for found in client.webhooks.list()] == [made.id]
    with sending(api.settings, api.database):
        assert client.webhooks.test(made.id).status_code == 200
        succeeded, failed = finished(api, client), finished(api, client, MISSING)
        taken = receiver.wait(3)
        rotated = client.webhooks.rotate(made.id, grace_seconds=60)
        finished(api, client)
        last = receiver.wait(4)[3]
    events = [Webhook(made.secret).verify(one.body, one.headers) for one in taken]
    assert {(event["type"], event["data"]["id"]) for event in events[1:]} == {
        ("job.succeeded", succeeded),
        ("job.failed", failed),
    }
    assert rotated.secret not in {None, made.secret}
    for secret in (made.secret, str(rotated.secret)):
        assert Webhook(secret).verify(last.body, last.headers)
    log = list(client.webhooks.deliveries(made.id, state="succeeded"))
    assert len(log) == 4
    assert {one.headers["webhook-id"] for one in receiver.taken} == {found.event_id for found in log}
    assert all(found.attempts[0].status_code == 200 for found in log)
    changed = client.webhooks.update(made.id, event_types=[], name="nothing")
    assert (changed.event_types, changed.name, changed.url) == ((), "nothing", made.url)
    client.webhooks.delete(made.id)
    with pytest.raises(NotFound):
        client.webhooks.get(made.id)


def test_what_failed_is_replayed(api: Served, client: Client, receiver: Receiver) -> None:
    made = client.webhooks.create(receiver.url)
    receiver.answer = lambda handler: say(handler, 410)
    with sending(api.settings, api.database):
        finished(api, client)
        receiver.wait(1)
        until = time.monotonic() + 30
        while client.webhooks.get(made.id).enabled:
            assert time.monotonic() < until
            time.sleep(0.05)
        (delivery,) = client.webhooks.deliveries(made.id)
        with pytest.raises(Conflict):
            client.webhooks.replay(made.id, delivery.id)
        client.webhooks.update(made.id, enabled=True)
        receiver.answer = lambda handler: say(handler, 200)
        assert client.webhooks.replay_failed(made.id, since=delivery.created_at) == 1
        receiver.wait(2)
        assert client.webhooks.replay_failed(made.id, since=delivery.created_at) == 0
        assert client.webhooks.replay(made.id, delivery.id).event_id == delivery.event_id
        receiver.wait(3)
    assert len({taken.headers["webhook-id"] for taken in receiver.taken}) == 1


def test_a_job_may_name_an_endpoint_of_its_own(api: Served, client: Client, receiver: Receiver) -> None:
    made = client.webhooks.create(receiver.url, event_types=[])
    with sending(api.settings, api.database):
        finished(api, client)
        named = finished(api, client, MISSING, webhook=made.id)
        child = client.redrive(named)
        worker = HandWorker(api.database, child.id)
        worker.finish({0: "text"})
        taken = receiver.wait(2)
    assert client.job(named).webhook_endpoint_id == made.id
    assert {one.event["data"]["id"] for one in taken} == {named, child.id}
    client.webhooks.update(made.id, enabled=False)
    assert client.submit("ocr", source=SOURCE, webhook=made.id).webhook_endpoint_id == made.id
    client.webhooks.delete(made.id)
    for endpoint_id in (made.id, str(uuid.uuid4())):
        with pytest.raises(InvalidRequest) as found:
            client.submit("ocr", source=SOURCE, webhook=endpoint_id)
        assert found.value.param == "webhook.endpoint_id"


def test_addresses_quota_tenants_and_scopes_are_held(
    api: Served, client: Client, http: httpx2.Client, database: Database
) -> None:
    for url in ("ftp://example.com", "https://10.0.0.1/", "https://user@example.com/", "http://192.168.0.1/", "no url"):
        with pytest.raises(InvalidRequest) as refused:
            client.webhooks.create(url)
        assert refused.value.param == "url"
    made = [
        client.webhooks.create(f"https://example.com/{n}") for n in range(api.settings.webhook_endpoints_per_tenant)
    ]
    with pytest.raises(RateLimited) as full:
        client.webhooks.create("https://example.com/one-more")
    assert full.value.code == "quota_exceeded"
    client.webhooks.delete(made[0].id)
    client.webhooks.create("https://example.com/one-more")
    with api.client(add_caller(database, "other").key) as other:
        assert list(other.webhooks.list()) == []
        with pytest.raises(NotFound):
            other.webhooks.rotate(made[1].id)
        with pytest.raises(NotFound):
            other.webhooks.delete(made[1].id)
    reader = add_caller(database, "acme", scopes=("webhooks:read",))
    assert http.get(f"/v1/webhook_endpoints/{made[1].id}", headers={"authorization": f"Bearer {reader.key}"}).is_success
    refused_write = http.delete(
        f"/v1/webhook_endpoints/{made[1].id}", headers={"authorization": f"Bearer {reader.key}"}
    )
    assert refused_write.status_code == 403


def test_old_secrets_are_few_and_a_rotation_repeats_by_its_key(client: Client) -> None:
    made = client.webhooks.create("https://example.com/", idempotency_key="create")
    assert client.webhooks.create("https://example.com/", idempotency_key="create") == made
    first = client.webhooks.rotate(made.id, idempotency_key="one")
    assert client.webhooks.rotate(made.id, idempotency_key="one").secret == first.secret
    for _ in range(3):
        client.webhooks.rotate(made.id)
    with pytest.raises(Conflict):
        client.webhooks.rotate(made.id)
    assert client.webhooks.rotate(made.id, grace_seconds=0).secret


def test_a_sample_says_what_the_receiver_said(
    api: Served, client: Client, receiver: Receiver, http: httpx2.Client
) -> None:
    made = client.webhooks.create(receiver.url)
    receiver.answer = lambda handler: say(handler, 500)
    with sending(api.settings, api.database):
        result = client.webhooks.test(made.id, event_type="batch.failed")
    assert (result.success, result.status_code, result.error) == (False, 500, "answered with status 500")
    assert receiver.taken[0].event["type"] == "batch.failed"
    late = http.post(f"/v1/webhook_endpoints/{made.id}/test", params={"wait": 0}).json()
    assert (late["success"], late["status_code"]) == (False, None)
    assert "log of deliveries" in late["error"]


def test_the_asynchronous_client_calls_the_same(api: Served, receiver: Receiver) -> None:
    async def walk() -> str:
        async with AsyncClient(api.url, api_key=api.caller.key) as client:
            made = await client.webhooks.create(receiver.url)
            assert [found.id async for found in client.webhooks.list()] == [made.id]
            assert (await client.webhooks.test(made.id)).success
            (delivery,) = [found async for found in client.webhooks.deliveries(made.id)]
            assert (await client.webhooks.replay(made.id, delivery.id)).event_id == delivery.event_id
            await client.webhooks.delete(made.id)
            return str(made.secret)

    with sending(api.settings, api.database):
        secret = asyncio.run(walk())
    assert Webhook(secret).verify(receiver.taken[0].body, receiver.taken[0].headers)


def test_openai_s_client_manages_endpoints(api: Served, sdk: OpenAI, receiver: Receiver) -> None:
    made = sdk.webhooks.create(name="ci", url=receiver.url, event_types=["batch.completed", "batch.failed"])
    assert sdk.webhooks.retrieve(made.id).url == receiver.url
    assert [found.id for found in sdk.webhooks.list()] == [made.id]
    assert sdk.webhooks.update(made.id, name="new").name == "new"
    with sending(api.settings, api.database):
        tested = sdk.webhooks.test(made.id, event_type="batch.completed")
    assert (tested.success, tested.status_code) == (True, 200)
    unwrapped = sdk.webhooks.unwrap(receiver.taken[0].body, receiver.taken[0].headers, secret=made.signing_secret)
    assert unwrapped.type == "batch.completed"
    rotated = sdk.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
    assert rotated.signing_secret != made.signing_secret
    assert sdk.webhooks.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        sdk.webhooks.retrieve(made.id)


def batch(sdk: OpenAI, *lines: Any) -> str:
    body = b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    file = sdk.files.create(file=("requests.jsonl", body), purpose="batch")
    made = sdk.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    return made.id


def line(custom_id: str) -> dict[str, Any]:
    body = {"model": "internvl-chat-v1-5", "messages": [{"role": "user", "content": "Hello"}]}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def test_a_batch_s_event_comes_when_its_output_can_be_fetched(
    api: Served, client: Client, sdk: OpenAI, receiver: Receiver
) -> None:
    made = client.webhooks.create(receiver.url, event_types=["batch.completed", "batch.failed", "batch.cancelled"])
    fetched: dict[str, Any] = {}

    def fetch_at_once(handler: Any) -> None:
        event = sdk.webhooks.unwrap(receiver.taken[-1].body, receiver.taken[-1].headers, secret=made.secret)
        found = sdk.batches.retrieve(event.data.id)  # type: ignore[union-attr]  # every event of ours has an id
        fetched[event.type] = found
        if found.output_file_id:
            fetched["output"] = sdk.files.content(found.output_file_id).text
        say(handler, 200)

    receiver.answer = fetch_at_once
    hold = threading.Event()
    with sending(api.settings, api.database), working(api.settings, api.database, hold=hold):
        refused = batch(sdk, b"{nonsense")
        receiver.wait(1)
        cancelled = batch(sdk, line("a"))
        sdk.batches.cancel(cancelled)
        receiver.wait(2)
        hold.set()
        done = batch(sdk, line("a"), line("b"))  # and nobody asks for it
        receiver.wait(3)
        until = time.monotonic() + 30
        while "output" not in fetched:
            assert time.monotonic() < until
            time.sleep(0.05)
    assert fetched["batch.failed"].id == refused
    assert fetched["batch.cancelled"].id == cancelled
    assert fetched["batch.completed"].id == done
    assert fetched["batch.completed"].status == "completed"
    assert len(fetched["output"].splitlines()) == 2
    kinds = [
        row.type for row in rows(api, "SELECT type FROM webhook_events WHERE starts_with(type, 'batch.') ORDER BY 1")
    ]
    assert kinds == ["batch.cancelled", "batch.completed", "batch.failed"]
    assert len(rows(api, "SELECT 1 FROM webhook_events WHERE starts_with(type, 'job.')")) == 3
    assert rows(api, "SELECT 1 FROM batch_endings") == []


def test_a_batch_whose_writer_died_is_written_by_another(api: Served, client: Client, sdk: OpenAI) -> None:
    with working(api.settings, api.database):
        made = batch(sdk, line("a"))
        until = time.monotonic() + 60
        while sdk.batches.retrieve(made).status != "completed":
            assert time.monotonic() < until
            time.sleep(0.1)
    job = uuid.UUID(made.removeprefix("batch_"))
    output = sdk.batches.retrieve(made).output_file_id
    assert output is not None
    sdk.files.delete(output)
    rows(
        api,
        "INSERT INTO batch_endings (job_id, tenant_id, attempt, lease_until)"
        " SELECT id, tenant_id, 1, now() + interval '1 second' FROM jobs WHERE id = %(job)s RETURNING 1",
        job=job,
    )
    assert sdk.batches.retrieve(made).status == "finalizing"
    with serving(api.settings):
        while sdk.batches.retrieve(made).status != "completed":
            assert time.monotonic() < until
            time.sleep(0.1)
    assert sdk.files.content(output).text


def rows(api: Served, sql: str, **values: Any) -> list[Any]:
    with api.database.begin() as conn:
        return list(conn.exec_driver_sql(sql, values or None))
