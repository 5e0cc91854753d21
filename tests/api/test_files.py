"""Uploads: streamed, stored once, presigned, listed, expired, deleted."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import text

from tests.api.conftest import Served, add_caller, serving


def upload(http: httpx2.Client, content: bytes, name: str = "a.png", **fields: str) -> dict[str, Any]:
    answer = http.post("/v1/files", files={"file": (name, content)}, data={"purpose": "user_data", **fields})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def blobs(api: Served, s3: Any) -> list[str]:
    bucket, prefix = api.settings.blob_url.removeprefix("s3://").split("/", 1)
    found = s3.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/files/").get("Contents", [])
    return [entry["Key"] for entry in found]


def test_what_is_uploaded_is_downloaded(http: httpx2.Client) -> None:
    content = os.urandom(3_000_000)
    file = upload(http, content, "scan ü.png")
    assert file["object"] == "file"
    assert file["bytes"] == len(content)
    assert file["filename"] == "scan ü.png"
    assert file["status"] == "uploaded"
    assert http.get(f"/v1/files/{file['id']}").json() == file
    answer = http.get(f"/v1/files/{file['id']}/content")
    assert answer.content == content
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "attachment" in answer.headers["content-disposition"]


def test_empty_files_and_fields_behind_the_file(http: httpx2.Client) -> None:
    assert upload(http, b"")["bytes"] == 0
    boundary = "x" * 20
    body = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="../../etc/pass\\wd"\r\n\r\nabc\r\n'
        f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nvision\r\n--{boundary}--\r\n'
    )
    headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
    file = http.post("/v1/files", content=body, headers=headers).json()
    assert file["purpose"] == "vision"
    assert "/" not in file["filename"]
    assert "\\" not in file["filename"]


@pytest.mark.parametrize("cut", [10, 90, 130])
def test_a_form_that_breaks_off_leaves_nothing(api: Served, http: httpx2.Client, s3: Any, cut: int) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + b"z" * 60 + b"\r\n--b--\r\n"
    answer = http.post("/v1/files", content=body[:cut], headers={"content-type": "multipart/form-data; boundary=b"})
    assert answer.status_code == 422, answer.text
    assert http.get("/v1/files").json()["data"] == []
    assert blobs(api, s3) == []


def test_forms_that_are_none(http: httpx2.Client) -> None:
    assert http.post("/v1/files", json={"a": 1}).status_code == 415
    assert http.post("/v1/files", data={"purpose": "user_data"}).status_code == 415
    answer = http.post("/v1/files", files={"other": ("a", b"b")})
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "file"
    answer = http.post("/v1/files", files={"file": ("a", b"b")}, data={"purpose": "magic"})
    assert answer.json()["error"]["param"] == "purpose"


def test_equal_content_is_stored_once_and_kept_while_it_is_used(api: Served, http: httpx2.Client, s3: Any) -> None:
    first, second = upload(http, b"same"), upload(http, b"same", "b.png")
    assert first["id"] != second["id"]
    assert len(blobs(api, s3)) == 1
    stranger = add_caller(api.database, "stranger")
    with api.http(stranger.key) as other:
        upload(other, b"same")
        assert len(blobs(api, s3)) == 2  # nothing is shared across tenants
        assert other.get(f"/v1/files/{first['id']}").status_code == 404
        assert other.delete(f"/v1/files/{first['id']}").status_code == 404
    deleted = http.delete(f"/v1/files/{first['id']}").json()
    assert deleted == {"id": first["id"], "object": "file", "deleted": True}
    assert http.get(f"/v1/files/{first['id']}").status_code == 404
    assert http.get(f"/v1/files/{second['id']}/content").content == b"same"
    http.delete(f"/v1/files/{second['id']}")
    assert len(blobs(api, s3)) == 1


def test_listing_in_pages_both_ways(http: httpx2.Client) -> None:
    ids = [upload(http, bytes([n]))["id"] for n in range(5)]
    upload(http, b"batch", purpose="batch")

    def pages(**query: Any) -> Iterator[str]:
        after = None
        while True:
            page = http.get("/v1/files", params={"limit": 2, **query} | ({"after": after} if after else {})).json()
            yield from (file["id"] for file in page["data"])
            after = page["last_id"]
            if not page["has_more"]:
                return

    assert list(pages(purpose="user_data")) == ids[::-1]
    assert list(pages(purpose="user_data", order="asc")) == ids


def test_files_expire(api: Served, http: httpx2.Client) -> None:
    file = upload(http, b"x", **{"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"})
    assert file["expires_at"] - file["created_at"] in {3599, 3600, 3601}
    with api.database.begin() as conn:
        conn.execute(text("UPDATE files SET expires_at = now() - interval '1 second'"))
    assert http.get(f"/v1/files/{file['id']}").status_code == 404
    bad = http.post(
        "/v1/files",
        files={"file": ("a", b"b")},
        data={"expires_after[anchor]": "created_at", "expires_after[seconds]": "5"},
    )
    assert bad.status_code == 422


def test_storage_has_a_quota(api: Served, s3: Any) -> None:
    small = add_caller(api.database, "small", max_stored_bytes=10)
    with api.http(small.key) as http:
        upload(http, b"123456")
        answer = http.post("/v1/files", files={"file": ("a", b"7890123")})
        assert answer.status_code == 429
        assert answer.json()["error"]["code"] == "quota_exceeded"
        assert len(blobs(api, s3)) == 1
        presigned = http.post("/v1/files/presigned", json={"filename": "a", "bytes": 7})
        assert presigned.json()["error"]["code"] == "quota_exceeded"


def test_uploads_are_counted_while_they_are_read(api: Served, http: httpx2.Client, s3: Any) -> None:
    small = api.settings.model_copy(update={"max_upload_bytes": 1_000_000})
    with serving(small) as (url, _), httpx2.Client(base_url=url, headers=dict(http.headers), timeout=30) as client:
        answer = client.post("/v1/files", files={"file": ("a", b"x" * 3_000_000)})
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "request_too_large"
    assert blobs(api, s3) == []


def test_a_presigned_upload_goes_past_the_api(http: httpx2.Client) -> None:
    content = os.urandom(100_000)
    made = http.post("/v1/files/presigned", json={"filename": "clip.mp4", "bytes": len(content)}).json()
    file_id = made["file"]["id"]
    assert http.get(f"/v1/files/{file_id}/content").status_code == 409
    job = {"kind": "video_qa", "source": {"type": "files", "file_ids": [file_id]}, "parameters": {"questions": ["?"]}}
    assert http.post("/v1/jobs", json=job).json()["error"]["code"] == "media_not_found"
    assert http.post(made["complete_url"]).status_code == 409
    assert httpx2.put(made["url"], content=content, headers=made["headers"]).status_code in {200, 201, 204}
    done = http.post(made["complete_url"]).json()
    assert (done["bytes"], done["status"], done["status_details"]) == (len(content), "uploaded", None)
    assert http.post(made["complete_url"]).json() == done
    assert http.get(f"/v1/files/{file_id}/content").content == content
    assert http.post("/v1/jobs", json=job).status_code == 202


def test_a_large_upload_is_not_held_in_memory(http: httpx2.Client, tmp_path: Path) -> None:
    path = tmp_path / "large.bin"
    digest = hashlib.sha256()
    with path.open("wb") as out:
        for number in range(48):
            piece = bytes([number]) * 1_000_000
            digest.update(piece)
            out.write(piece)
    with path.open("rb") as stream:
        file = http.post("/v1/files", files={"file": ("large.bin", stream)}, timeout=120).json()
    assert file["bytes"] == 48_000_000
    received = hashlib.sha256()
    with http.stream("GET", f"/v1/files/{file['id']}/content") as answer:
        for piece in answer.iter_bytes():
            received.update(piece)
    assert received.digest() == digest.digest()
