"""Submitting, reading and listing jobs over HTTP."""

from __future__ import annotations

import json
import uuid

import httpx2

from tests.api.conftest import Served, add_caller

SOURCE = {"type": "media", "media": [{"url": "s3://scans/a.png"}, {"url": "s3://scans/b.pdf", "id": "b"}]}
OCR = {"kind": "ocr", "source": SOURCE, "parameters": {"max_tiles": 6}}
PREFIX = {"type": "prefix", "url": "s3://scans/"}


def test_a_submission_is_accepted_with_its_address(http: httpx2.Client) -> None:
    answer = http.post("/v1/jobs", json={**OCR, "metadata": {"case": "17"}, "priority": "bulk"})
    assert answer.status_code == 202
    body = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{body['id']}"
    assert answer.headers["retry-after"].isdigit()
    assert uuid.UUID(body["id"]).version == 7
    assert body["state"] == "queued"
    assert body["priority"] == "bulk"
    assert body["metadata"] == {"case": "17"}
    assert body["parameters"]["max_tiles"] == 6
    assert body["parameters"]["output"] == "text"  # completed with the kind's defaults
    assert body["source"]["count"] == 2
    assert body["queue_position"] == 0


def test_what_was_accepted_is_read_back(http: httpx2.Client) -> None:
    job = http.post("/v1/jobs", json=OCR).json()
    answer = http.get(f"/v1/jobs/{job['id']}")
    assert answer.status_code == 200
    assert answer.json() == job
    assert answer.headers["retry-after"].isdigit()
    assert answer.headers["etag"] == f'W/"{job["version"]}"'


def test_an_unchanged_job_is_not_sent_again(http: httpx2.Client) -> None:
    job = http.post("/v1/jobs", json=OCR).json()
    path = f"/v1/jobs/{job['id']}"
    etag = http.get(path).headers["etag"]
    again = http.get(path, headers={"if-none-match": etag})
    assert again.status_code == 304
    assert again.content == b""
    assert again.headers["etag"] == etag
    assert http.get(path, headers={"if-none-match": 'W/"999"'}).status_code == 200
    assert http.get(path, headers={"if-none-match": f'"x", {etag}'}).status_code == 304
    assert http.get(path, headers={"if-none-match": "*"}).status_code == 304


def test_jobs_of_others_are_not_there(api: Served, http: httpx2.Client) -> None:
    job = http.post("/v1/jobs", json=OCR).json()
    stranger = add_caller(api.database, "stranger")
    with api.http(stranger.key) as other:
        for method, path in [
            ("GET", ""),
            ("GET", "/items"),
            ("GET", "/items/0"),
            ("GET", "/items/0/tiles"),
            ("GET", "/results"),
            ("POST", "/cancel"),
            ("POST", "/redrive"),
        ]:
            answer = other.request(method, f"/v1/jobs/{job['id']}{path}")
            assert answer.status_code == 404, path
            assert answer.json()["error"]["code"] == "not_found"
        assert other.get("/v1/jobs").json()["data"] == []


def test_jobs_are_listed_in_pages_newest_first(http: httpx2.Client) -> None:
    made = [http.post("/v1/jobs", json={**OCR, "metadata": {"n": n}}).json()["id"] for n in range(5)]
    seen: list[str] = []
    after = None
    while True:
        query = {"limit": "2"} | ({"after": after} if after else {})
        page = http.get("/v1/jobs", params=query).json()
        assert page["object"] == "list"
        seen += [job["id"] for job in page["data"]]
        assert page["first_id"] == page["data"][0]["id"]
        after = page["last_id"]
        if not page["has_more"]:
            break
    assert seen == made[::-1]


def test_listing_is_narrowed_by_kind_state_and_metadata(http: httpx2.Client) -> None:
    wanted = http.post("/v1/jobs", json={**OCR, "metadata": {"case": "17", "lot": "b"}}).json()["id"]
    http.post("/v1/jobs", json={**OCR, "metadata": {"case": "18"}})
    http.post("/v1/jobs", json={"kind": "caption", "source": SOURCE, "metadata": {"case": "17"}})

    def ids(**query: str) -> list[str]:
        return [job["id"] for job in http.get("/v1/jobs", params=query).json()["data"]]

    assert ids(**{"metadata[case]": "17", "kind": "ocr"}) == [wanted]
    assert ids(**{"metadata[case]": "17", "metadata[lot]": "b"}) == [wanted]
    assert len(ids(kind="caption")) == 1
    assert len(ids(state="queued")) == 3
    assert ids(state="failed") == []
    assert ids(created_after="2100-01-01T00:00:00Z") == []


def test_every_kind_of_source_is_taken(http: httpx2.Client) -> None:
    upload = http.post("/v1/files", files={"file": ("a.png", b"png")}, data={"purpose": "user_data"}).json()["id"]
    sources = [
        {"type": "prefix", "url": "s3://scans/2026/"},
        {"type": "prefix", "url": "s3://media/public/**/*.png"},
        {"type": "manifest", "inline": '{"url": "s3://scans/a.png"}', "format": "jsonl"},
        {"type": "manifest", "url": "s3://scans/list.csv", "format": "csv"},
        {"type": "manifest", "file_id": upload, "format": "jsonl"},
        {"type": "files", "file_ids": [upload]},
        {"type": "media", "media": [{"file_id": upload, "id": "mine", "metadata": {"a": 1}}]},
    ]
    for source in sources:
        answer = http.post("/v1/jobs", json={"kind": "ocr", "source": source})
        assert answer.status_code == 202, answer.text
        shown = answer.json()["source"]
        assert shown["type"] == source["type"]
        assert "upload:" not in json.dumps(shown)
    chat = {"kind": "chat", "source": {"type": "none"}, "parameters": {"messages": [{"role": "user", "content": "hi"}]}}
    assert http.post("/v1/jobs", json=chat).status_code == 202


def test_a_list_of_media_is_shortened_in_answers(http: httpx2.Client) -> None:
    media = [{"url": f"s3://scans/{n}.png"} for n in range(100)]
    job = http.post("/v1/jobs", json={"kind": "ocr", "source": {"type": "media", "media": media}}).json()
    assert job["source"]["count"] == 100
    assert len(job["source"]["media"]) == 20


def test_the_queue_position_counts_unfinished_jobs_ahead(http: httpx2.Client) -> None:
    first = http.post("/v1/jobs", json=OCR).json()
    second = http.post("/v1/jobs", json=OCR).json()
    urgent = http.post("/v1/jobs", json={**OCR, "source": PREFIX, "priority": "interactive"}).json()
    position = {
        name: http.get(f"/v1/jobs/{job['id']}").json()["queue_position"]
        for name, job in [("first", first), ("second", second), ("urgent", urgent)]
    }
    assert position == {"urgent": 0, "first": 1, "second": 2}
