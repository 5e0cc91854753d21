"""Interactive jobs that name a few media are accepted together with their plan; all others wait for a planner."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
import redis

from tests.api.conftest import Served

PICTURE = {"url": "s3://scans/a.png"}
PAGES = {"url": "s3://scans/b.pdf"}


def media(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"type": "media", "media": list(entries)}


def submitted(http: httpx2.Client, source: dict[str, Any], *, priority: str = "interactive") -> Any:
    answer = http.post("/v1/jobs", json={"kind": "ocr", "source": source, "priority": priority})
    assert answer.status_code == 202, answer.text
    return answer.json()


def hints(api: Served) -> int:
    with redis.Redis.from_url(api.settings.redis_url) as broker:
        return int(broker.llen("cpu")) + int(broker.llen("cpu.interactive"))


def rows(api: Served, statement: str, job: Any) -> list[tuple[Any, ...]]:
    with api.database.begin() as conn:
        return [tuple(row) for row in conn.exec_driver_sql(statement, {"job": job["id"]})]


def test_a_few_named_media_are_items_when_the_answer_comes(api: Served, http: httpx2.Client) -> None:
    job = submitted(http, media(PICTURE, {"url": "s3://scans/c.jpg", "id": "c", "metadata": {"n": 1}}))
    assert (job["state"], job["planned"]) == ("running", True)
    assert (job["total"], job["counts"]["pending"]) == (2, 2)
    assert job["started_at"] is not None
    found = rows(
        api,
        "SELECT i.seq, i.state, d.name, d.metadata FROM items AS i JOIN documents AS d USING (job_id, doc)"
        " WHERE i.job_id = %(job)s ORDER BY i.seq",
        job,
    )
    assert found == [(0, "pending", "a.png", {}), (1, "pending", "c", {"n": 1})]
    assert hints(api) == 0, "there is nothing left to plan"
    assert http.get(f"/v1/jobs/{job['id']}").json() == job


def test_a_document_waits_for_its_pages_alone(api: Served, http: httpx2.Client) -> None:
    job = submitted(http, media(PICTURE, PAGES))
    assert (job["state"], job["total"]) == ("planning", 1)
    assert rows(api, "SELECT doc, state FROM documents WHERE job_id = %(job)s ORDER BY doc", job) == [
        (0, "done"),
        (1, "pending"),
    ]
    assert hints(api) == 0


def test_an_uploaded_file_is_pinned_by_its_digest(api: Served, http: httpx2.Client) -> None:
    file = http.post("/v1/files", files={"file": ("scan.png", b"pixels")}, data={"purpose": "user_data"}).json()
    job = submitted(http, {"type": "files", "file_ids": [file["id"]]})
    ((pinned,),) = rows(api, "SELECT media FROM documents WHERE job_id = %(job)s", job)
    assert pinned[0]["version"].startswith("sha256:")
    assert job["state"] == "running"


@pytest.mark.parametrize(
    ("source", "priority"),
    [
        (media(PICTURE), "normal"),
        (media(PICTURE), "bulk"),
        (media(*[{"url": f"s3://scans/{n}.png"} for n in range(17)]), "interactive"),
        (media(PICTURE, {"url": "s3://scans/clip.mp4"}), "interactive"),
        ({"type": "prefix", "url": "s3://scans/"}, "interactive"),
        ({"type": "manifest", "format": "jsonl", "inline": '{"url": "s3://scans/a.png"}'}, "interactive"),
    ],
    ids=["normal", "bulk", "many", "one of them unusable", "prefix", "manifest"],
)
def test_everything_else_is_left_to_a_planner(
    api: Served, http: httpx2.Client, source: dict[str, Any], priority: str
) -> None:
    job = submitted(http, source, priority=priority)
    assert (job["state"], job["planned"], job["total"]) == ("queued", False, 0)
    assert rows(api, "SELECT 1 FROM documents WHERE job_id = %(job)s", job) == []
    assert hints(api) == 1
