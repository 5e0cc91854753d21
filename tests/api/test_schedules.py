"""Schedules over HTTP and through the client: made, seen, changed, run, and what is refused."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest

from api.client import AsyncClient, Client, Conflict, InvalidRequest, NotFound
from pipelines.control.firing import Scheduler
from pipelines.store import leader
from pipelines.store.leader import Terms
from tests.api.conftest import Served, add_caller, serving
from tests.api.work import HandWorker

JOB = {
    "kind": "ocr",
    "source": {"type": "prefix", "url": "s3://scans/{date:%Y/%m/%d}/"},
    "parameters": {"max_tiles": 6},
}
NIGHTLY = {"name": "nightly", "cron": "30 2 * * *", "timezone": "Europe/Berlin", "job": JOB}


def fire(api: Served, at: datetime) -> None:
    """What the leader does, at another time."""
    rules = api.app.state.services.submit_rules
    with api.database.begin() as conn:
        epoch = leader.acquire(conn, "test", Terms(lease=0.001, grace=60, gap=60))
    assert epoch is not None
    Scheduler(api.database, rules).fire(epoch, now=at)


def test_a_schedule_is_made_once_and_says_when_it_runs(http: httpx2.Client) -> None:
    key = {"Idempotency-Key": "one"}
    made = http.post("/v1/schedules", json=NIGHTLY, headers=key)
    assert made.status_code == 201, made.text
    body = made.json()
    assert made.headers["location"] == f"/v1/schedules/{body['id']}"
    assert (body["overlap"], body["catch_up"], body["only_new"], body["paused"]) == ("skip", "last", True, False)
    assert (body["job"]["priority"], body["job"]["parameters"]["max_tiles"]) == ("bulk", 6)
    assert body["job"]["source"]["url"] == "s3://scans/{date:%Y/%m/%d}/", "dates are filled in by each run"
    assert len(body["next_runs"]) == 5
    assert datetime.fromisoformat(body["next_runs"][0]) == datetime.fromisoformat(body["next_at"])
    assert body["last_run"] is None
    again = http.post("/v1/schedules", json=NIGHTLY, headers=key)
    assert (again.status_code, again.json()["id"]) == (201, body["id"])
    assert again.headers["idempotent-replayed"] == "true"
    assert http.get(f"/v1/schedules/{body['id']}").json() == body
    assert [each["id"] for each in http.get("/v1/schedules").json()["data"]] == [body["id"]]


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"cron": "30 25 * * *"}, 422, "cron"),
        ({"timezone": "Europe/Atlantis"}, 422, "timezone"),
        ({"name": ""}, 422, "name"),
        ({"overlap": "perhaps"}, 422, "overlap"),
        ({"misfire_grace_seconds": -1}, 422, "misfire_grace_seconds"),
        ({"job": {**JOB, "kind": "nonsense"}}, 422, None),
        ({"job": {**JOB, "parameters": {"max_tiles": 99}}}, 422, "parameters.max_tiles"),
        ({"job": {**JOB, "source": {"type": "prefix", "url": "s3://scans/{dtae}/"}}}, 422, "source.url"),
        ({"job": {**JOB, "source": {"type": "prefix", "url": "s3://secrets/{date}/"}}}, 403, "source.url"),
        ({"job": {**JOB, "deadline_at": "2030-01-01T00:00:00Z"}}, 422, "job.deadline_at"),
        ({"job": {"kind": "ocr", "source": {"type": "files", "file_ids": ["file-" + "0" * 32]}}}, 404, None),
        (
            {"job": {"kind": "ocr", "source": {"type": "media", "media": [{"url": "s3://scans/a"}]}}, "only_new": True},
            422,
            "only_new",
        ),
    ],
)
def test_what_cannot_run_is_refused_at_once(
    http: httpx2.Client, change: dict[str, Any], status: int, param: str | None
) -> None:
    refused = http.post("/v1/schedules", json={**NIGHTLY, **change})
    assert refused.status_code == status, refused.text
    if param is not None:
        assert refused.json()["error"]["param"] == param
    assert http.get("/v1/schedules").json()["data"] == []


def test_names_are_unique_and_their_number_is_bounded(api: Served, http: httpx2.Client) -> None:
    assert http.post("/v1/schedules", json=NIGHTLY).status_code == 201
    taken = http.post("/v1/schedules", json=NIGHTLY)
    assert (taken.status_code, taken.json()["error"]["code"]) == (409, "conflict")
    with serving(api.settings.model_copy(update={"max_schedules": 1})) as (url, _):
        full = http.post(f"{url}/v1/schedules", json={**NIGHTLY, "name": "another"})
    assert (full.status_code, full.json()["error"]["code"]) == (429, "quota_exceeded")


def test_a_change_sets_what_it_names(http: httpx2.Client) -> None:
    made = http.post("/v1/schedules", json=NIGHTLY).json()
    where = f"/v1/schedules/{made['id']}"
    changed = http.patch(where, json={"cron": "0 * * * *", "timezone": "UTC", "overlap": "allow"}).json()
    assert (changed["cron"], changed["overlap"], changed["name"]) == ("0 * * * *", "allow", "nightly")
    assert changed["job"] == made["job"]
    assert datetime.fromisoformat(changed["next_at"]) - datetime.now(UTC) <= timedelta(hours=1)
    assert http.patch(where, json={"cron": "x y z u v"}).status_code == 422
    assert http.patch(where, json={"crom": "0 * * * *"}).status_code == 422
    paused = http.post(f"{where}/pause").json()
    assert (paused["paused"], paused["next_at"], paused["next_runs"]) == (True, None, [])
    still = http.patch(where, json={"cron": "5 * * * *"}).json()
    assert still["next_at"] is None, "a change wakes no paused schedule"
    resumed = http.post(f"{where}/resume").json()
    assert resumed["next_runs"][0].endswith(":05:00Z")


def test_a_run_has_a_job_and_stands_in_the_history(api: Served, client: Client, http: httpx2.Client) -> None:
    made = client.schedules.create("nightly", "30 2 * * *", job=JOB, timezone="Europe/Berlin", overlap="skip")
    assert made.next_at is not None
    fire(api, made.next_at + timedelta(seconds=30))
    after = client.schedules.get(made.id)
    assert after.last_run is not None
    assert after.next_runs[0] > made.next_runs[0]
    job = client.job(after.last_run.job_id or "")
    local = made.next_runs[0]
    assert job.source["url"] == f"s3://scans/{local:%Y/%m/%d}/"
    assert (job.priority, job.schedule_id, job.schedule_run_id) == ("bulk", made.id, after.last_run.id)
    with pytest.raises(Conflict):
        client.schedules.run(made.id)
    worker = HandWorker(api.database, job.id)
    worker.plan(["a.png"])
    worker.finish({0: "text"})
    run = client.schedules.run(made.id, only_new=False)
    assert (run.trigger, run.state, run.job_state, run.only_new) == ("manual", "fired", "queued", False)
    assert [each.id for each in client.schedules.runs(made.id)] == [run.id, after.last_run.id]
    assert [each.job_state for each in client.schedules.runs(made.id)] == ["queued", "succeeded"]
    assert {each.id for each in client.jobs(schedule_id=made.id)} == {job.id, run.job_id}
    first = http.get(f"/v1/schedules/{made.id}/runs", params={"limit": 1}).json()
    assert first["has_more"]
    rest = http.get(f"/v1/schedules/{made.id}/runs", params={"after": first["last_id"]}).json()
    assert [each["trigger"] for each in rest["data"]] == ["cron"]
    assert http.get(f"/v1/schedules/{made.id}/runs", params={"state": "failed"}).json()["data"] == []


def test_a_run_by_hand_is_made_once_for_a_key(http: httpx2.Client) -> None:
    made = http.post("/v1/schedules", json={**NIGHTLY, "overlap": "allow"}).json()
    headers = {"Idempotency-Key": "once"}
    one, other = (http.post(f"/v1/schedules/{made['id']}/run", headers=headers) for _ in range(2))
    assert (one.status_code, other.status_code) == (202, 202)
    assert one.json() == other.json()
    assert one.headers["location"] == f"/v1/jobs/{one.json()['job_id']}"


def test_a_refused_run_says_why_in_the_history(api: Served, client: Client) -> None:
    made = client.schedules.create("nightly", "30 2 * * *", job=JOB)
    assert made.next_at is not None
    with api.database.begin() as conn:
        conn.exec_driver_sql("UPDATE tenants SET allowed_buckets = '{elsewhere}'")
    fire(api, made.next_at)
    (run,) = client.schedules.runs(made.id)
    assert (run.state, run.job_id) == ("failed", None)
    assert run.error is not None
    assert run.error.code == "source_forbidden"


def test_deleting_leaves_the_jobs(api: Served, client: Client) -> None:
    made = client.schedules.create("nightly", "30 2 * * *", job=JOB)
    run = client.schedules.run(made.id)
    client.schedules.delete(made.id)
    with pytest.raises(NotFound):
        client.schedules.get(made.id)
    with pytest.raises(NotFound):
        client.schedules.delete(made.id)
    with pytest.raises(NotFound):
        list(client.schedules.runs(made.id))
    assert list(client.schedules.list()) == []
    assert client.job(run.job_id or "").schedule_id == made.id
    client.schedules.create("nightly", "30 2 * * *", job=JOB)


def test_nobody_sees_or_moves_anothers_schedule(api: Served, client: Client) -> None:
    made = client.schedules.create("nightly", "30 2 * * *", job=JOB)
    stranger = add_caller(api.database, "stranger")
    with api.client(stranger.key) as other, api.http(stranger.key) as http:
        assert list(other.schedules.list()) == []
        for method, path in (
            ("GET", ""),
            ("PATCH", ""),
            ("DELETE", ""),
            ("POST", "/pause"),
            ("POST", "/resume"),
            ("POST", "/run"),
            ("GET", "/runs"),
        ):
            body = {"name": "mine"} if method == "PATCH" else None
            answer = http.request(method, f"/v1/schedules/{made.id}{path}", json=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found"), path
        assert other.schedules.create("nightly", "0 0 * * *", job=JOB).name == "nightly"
    reader = add_caller(api.database, "acme", scopes=("jobs:read",))
    with api.http(reader.key) as http:
        assert http.get(f"/v1/schedules/{made.id}").status_code == 200
        assert http.post(f"/v1/schedules/{made.id}/pause").status_code == 403


def test_a_preview_shows_the_change_of_the_clock(http: httpx2.Client, client: Client) -> None:
    asked = {
        "cron": "30 2 * * *",
        "timezone": "Europe/Berlin",
        "url": "s3://scans/{yesterday}/",
        "after": "2026-03-28T00:00:00Z",
        "count": 3,
    }
    shown = http.post("/v1/schedules/preview", json=asked).json()["data"]
    assert [each["at"] for each in shown] == [
        "2026-03-28T02:30:00+01:00",
        "2026-03-29T03:00:00+02:00",
        "2026-03-30T02:30:00+02:00",
    ]
    assert shown[0]["url"] == "s3://scans/2026-03-27/"
    assert len(client.schedules.preview("0 0 * * *", count=2)) == 2
    with pytest.raises(InvalidRequest):
        client.schedules.preview("0 0 31 4 *")
    assert http.patch("/v1/schedules/preview", json=asked).status_code == 405
    assert http.post("/v1/schedules/preview", json={**asked, "after": "0001-01-01T00:00:00Z"}).status_code == 422


def test_the_asynchronous_client_does_the_same(api: Served) -> None:
    async def work() -> None:
        async with AsyncClient(api.url, api_key=api.caller.key) as client:
            made = await client.schedules.create("nightly", "30 2 * * *", job=JOB, paused=True)
            assert made.paused
            assert (await client.schedules.resume(made.id)).next_at is not None
            assert (await client.schedules.change(made.id, name="weekly")).name == "weekly"
            assert [each.name async for each in client.schedules.list()] == ["weekly"]
            await client.schedules.pause(made.id)
            run = await client.schedules.run(made.id)
            assert [each.id async for each in client.schedules.runs(made.id)] == [run.id]
            await client.schedules.delete(made.id)

    asyncio.run(work())
