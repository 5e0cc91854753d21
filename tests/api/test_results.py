"""Items and results: JSON Lines, Markdown, pictures of tiles."""

from __future__ import annotations

import io
import json
from typing import Any

import httpx2
import pytest
from PIL import Image

from pipelines.blobs.s3 import S3BlobStore, S3Options
from tests.api.conftest import Served
from tests.api.work import MISSING, HandWorker

OCR = {"kind": "ocr", "source": {"type": "prefix", "url": "s3://scans/"}}


def lines(answer: httpx2.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200
    return [json.loads(line) for line in answer.text.splitlines()]


@pytest.fixture
def worker(api: Served, http: httpx2.Client) -> HandWorker:
    job = http.post("/v1/jobs", json=OCR).json()
    return HandWorker(api.database, job["id"])


def test_results_are_lines_in_the_order_of_the_source(http: httpx2.Client, worker: HandWorker) -> None:
    worker.plan(["a.png", "b.png", "c.png"], broken=["d.png"])
    worker.finish({0: "first", 2: "third", 1: MISSING})
    path = f"/v1/jobs/{worker.job_id}/results"
    found = lines(http.get(path))
    assert [(row["seq"], row["name"], row["text"]) for row in found] == [(0, "a.png", "first"), (2, "c.png", "third")]
    assert found[0]["metadata"] == {"of": "a.png"}
    assert found[0]["usage"]["completion_tokens"] == 7
    assert found[0]["provenance"]["model"] == "test"
    everything = lines(http.get(path, params={"include": "all"}))
    assert [row["state"] for row in everything] == ["succeeded", "failed", "succeeded", "failed"]
    assert everything[1]["error"] == {"code": MISSING.code, "message": MISSING.message}
    assert everything[3]["error"]["code"] == "corrupt_media"


def test_results_go_on_behind_a_seq(http: httpx2.Client, worker: HandWorker) -> None:
    worker.plan([f"{n}.png" for n in range(7)])
    worker.finish({n: f"text {n}" for n in range(7)})
    path = f"/v1/jobs/{worker.job_id}/results"
    assert [row["seq"] for row in lines(http.get(path, params={"after": 2, "limit": 3}))] == [3, 4, 5]
    assert [row["seq"] for row in lines(http.get(path, params={"after": 5}))] == [6]
    assert lines(http.get(path, params={"after": 6})) == []


def test_a_job_with_bad_items_ends_partial_with_everything_else_done(http: httpx2.Client, worker: HandWorker) -> None:
    worker.plan(["a.png", "b.png"], broken=["c.png"])
    worker.finish({0: "x", 1: "y"})
    job = http.get(f"/v1/jobs/{worker.job_id}").json()
    assert job["state"] == "partial"
    assert job["counts"]["succeeded"] == 2
    assert job["errors"] == {"corrupt_media": 1}
    assert job["usage"]["device_seconds"] == 1.0
    assert job["progress"] == 1.0
    assert job["finished_at"] is not None
    usage = http.get("/v1/usage").json()
    assert usage["jobs"] == 1
    assert usage["completion_tokens"] == 14


def test_pages_of_a_document_stand_in_order_in_markdown(http: httpx2.Client, worker: HandWorker) -> None:
    worker.plan([("b_*.pdf", 3), "a.png"])
    job = http.get(f"/v1/jobs/{worker.job_id}/items").json()
    pages = {(entry["name"], entry["page"]): entry["seq"] for entry in job["data"]}
    assert sorted(page for name, page in pages if name == "b_*.pdf") == [1, 2, 3]
    worker.finish(
        {
            pages["b_*.pdf", 3]: "three",
            pages["b_*.pdf", 1]: "one",
            pages["b_*.pdf", 2]: MISSING,
            pages["a.png", None]: "picture",
        }
    )
    answer = http.get(f"/v1/jobs/{worker.job_id}/results", headers={"accept": "text/markdown"})
    assert answer.headers["content-type"] == "text/markdown; charset=utf-8"
    text = answer.text
    order = [text.index(part) for part in ("# b\\_\\*.pdf", "one", "> **failed**", "three", "# a.png", "picture")]
    assert order == sorted(order)
    assert text.count('<a id="0-page-') == 3
    plain = http.get(f"/v1/jobs/{worker.job_id}/results", headers={"accept": "text/plain"})
    assert plain.headers["content-type"] == "text/plain; charset=utf-8"
    parts = plain.text.split("\f")
    assert [part.splitlines()[0] for part in parts] == [
        "── b_*.pdf, page 1",
        "── b_*.pdf, page 2 [failed: media_not_found]",
        "── b_*.pdf, page 3",
        "── a.png",
    ]


def test_other_media_types_are_refused_in_words(http: httpx2.Client, worker: HandWorker) -> None:
    answer = http.get(f"/v1/jobs/{worker.job_id}/results", headers={"accept": "image/png"})
    assert answer.status_code == 406
    assert answer.json()["error"]["code"] == "not_acceptable"


def test_items_are_listed_by_state_and_code(http: httpx2.Client, worker: HandWorker) -> None:
    worker.plan(["a.png", "b.png", "c.png"], broken=["d.png"])
    worker.finish({0: "x", 1: MISSING})
    path = f"/v1/jobs/{worker.job_id}/items"

    def seqs(**query: Any) -> list[int]:
        return [entry["seq"] for entry in http.get(path, params=query).json()["data"]]

    assert seqs() == [0, 1, 2, 3]
    assert seqs(state="failed") == [1, 3]
    assert seqs(code="media_not_found") == [1]
    assert seqs(state=["pending", "succeeded"]) == [0, 2]
    page = http.get(path, params={"limit": 3}).json()
    assert page["has_more"] is True
    assert [entry["seq"] for entry in http.get(path, params={"after": page["last_id"]}).json()["data"]] == [3]


def test_an_item_shows_its_answer_and_its_failure(http: httpx2.Client, worker: HandWorker) -> None:
    worker.plan(["a.png", "b.png"])
    path = f"/v1/jobs/{worker.job_id}/items"
    assert http.get(f"{path}/0").json()["state"] == "pending"
    worker.finish({0: "the text", 1: MISSING})
    good, bad = http.get(f"{path}/0").json(), http.get(f"{path}/1").json()
    assert good["text"] == "the text"
    assert good["attempt"] == 2  # claimed to be prepared, then to be answered
    assert good["tiles"] == 3
    assert good["media"] == ["s3://scans/a.png"]
    assert bad["error"] == {"code": "media_not_found", "message": "there is no such object"}
    assert http.get(f"{path}/7").status_code == 404


def test_what_the_model_saw_is_a_picture(api: Served, http: httpx2.Client) -> None:
    blobs = S3BlobStore(
        S3Options(
            endpoint_url=api.settings.s3_endpoint_url,
            access_key_id=api.settings.s3_access_key_id,
            secret_access_key=api.settings.s3_secret_access_key.get_secret_value()
            if api.settings.s3_secret_access_key
            else None,
        ),
        bucket=api.settings.blob_url.removeprefix("s3://").split("/")[0],
        prefix="blobs",
    )
    job = http.post("/v1/jobs", json=OCR).json()
    worker = HandWorker(api.database, job["id"], blobs)
    worker.plan(["a.png", "b.png"])
    worker.prepare([0])
    answer = http.get(f"/v1/jobs/{job['id']}/items/0/tiles")
    assert answer.headers["content-type"] == "image/png"
    picture = Image.open(io.BytesIO(answer.content)).convert("RGB")
    assert picture.getpixel((100, 100)) == (128, 128, 128)
    assert picture.size == (2 * 228 + 4, 2 * 228 + 4)  # three tiles in two rows
    waiting = http.get(f"/v1/jobs/{job['id']}/items/1/tiles")
    assert waiting.status_code == 409
    blobs.delete("packs/test/pack")
    gone = http.get(f"/v1/jobs/{job['id']}/items/0/tiles")
    assert gone.status_code == 409


def test_cancelling_ends_what_waits_and_keeps_what_succeeded(http: httpx2.Client, worker: HandWorker) -> None:
    worker.plan(["a.png", "b.png"])
    worker.finish({0: "kept"})
    job = http.post(f"/v1/jobs/{worker.job_id}/cancel").json()
    assert job["state"] == "cancelled"
    assert job["counts"]["succeeded"] == 1
    assert job["counts"]["cancelled"] == 1
    assert lines(http.get(f"/v1/jobs/{worker.job_id}/results"))[0]["text"] == "kept"
    again = http.post(f"/v1/jobs/{worker.job_id}/cancel")
    assert again.status_code == 409
    assert again.json()["error"]["code"] == "job_not_cancellable"
    assert again.headers["x-should-retry"] == "false"


def test_redriving_makes_a_child_of_the_failed_items(http: httpx2.Client, worker: HandWorker) -> None:
    worker.plan(["a.png", "b.png", "c.png"])
    worker.finish({0: "x", 1: MISSING, 2: MISSING})
    path = f"/v1/jobs/{worker.job_id}/redrive"
    other = http.post(path, json={"codes": ["corrupt_media"]})
    assert other.status_code == 409
    assert other.json()["error"]["code"] == "nothing_to_redrive"
    answer = http.post(path, json={"codes": ["media_not_found"]})
    assert answer.status_code == 202
    child = answer.json()
    assert child["parent_id"] == str(worker.job_id)
    assert child["total"] == 2
    assert answer.headers["location"] == f"/v1/jobs/{child['id']}"
    assert http.get(f"/v1/jobs/{worker.job_id}").json()["state"] == "partial"
    assert [job["id"] for job in http.get("/v1/jobs", params={"parent_id": str(worker.job_id)}).json()["data"]] == [
        child["id"]
    ]
