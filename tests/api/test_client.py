"""The Python client against a served api: one walk, sync and async."""

from __future__ import annotations

import asyncio
import concurrent.futures
from pathlib import Path

import pytest

from api.client import (
    AsyncClient,
    AuthenticationFailed,
    Client,
    ConnectionFailed,
    InvalidRequest,
    NotFound,
    RetryPolicy,
    WaitTimeout,
)
from api.client.models import Job
from tests.api.conftest import Served
from tests.api.work import MISSING, HandWorker


def test_the_walk_of_one_request(api: Served, client: Client, tmp_path: Path) -> None:
    path = tmp_path / "scan.png"
    path.write_bytes(b"not really a picture")
    file = client.files.upload(path)
    assert client.files.get(file.id) == file
    assert [found.id for found in client.files.list()] == [file.id]
    assert client.files.content(file.id) == path.read_bytes()
    job = client.submit(
        "ocr",
        source={"type": "media", "media": [{"file_id": file.id, "id": "mine"}, {"url": "s3://scans/b.png"}]},
        parameters={"max_tiles": 4},
        metadata={"case": "17"},
    )
    assert [found.id for found in client.jobs(metadata={"case": "17"})] == [job.id]
    assert list(client.jobs(state="failed")) == []
    worker = HandWorker(api.database, job.id)
    updates: list[Job] = []
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.wait, job.id, timeout=60, on_update=updates.append)
        worker.plan(["mine", "b.png"])
        worker.finish({0: "the text", 1: MISSING})
        ended = waiting.result(70)
    assert ended.state == "partial"
    assert updates[-1] == ended
    assert [result.text for result in client.results(job.id)] == ["the text"]
    both = list(client.results(job.id, include="all"))
    assert both[1].error is not None
    assert both[1].error.code == "media_not_found"
    assert "# mine" in client.markdown(job.id)
    assert client.text(job.id).startswith("── mine")
    assert [item.state for item in client.items(job.id)] == ["succeeded", "failed"]
    assert client.item(job.id, 0).text == "the text"
    child = client.redrive(job.id, codes=["media_not_found"])
    assert child.parent_id == job.id
    assert client.cancel(child.id).state == "cancelled"
    assert {kind.name for kind in client.kinds()} >= {"ocr", "caption", "video_qa", "chat"}
    client.files.delete(file.id)
    with pytest.raises(NotFound):
        client.files.get(file.id)


def test_errors_are_typed(api: Served, client: Client) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client.submit("ocr", source={"type": "none"})
    assert caught.value.param == "source"
    with pytest.raises(NotFound):
        client.job("01a20b88-d08c-70dc-ad21-3c0664f4e867")
    with Client(api.url, api_key="bs_wrong_key") as wrong, pytest.raises(AuthenticationFailed):
        wrong.kinds()
    nowhere = Client("http://127.0.0.1:9", api_key="x", retry=RetryPolicy(retries=0))
    with nowhere, pytest.raises(ConnectionFailed):
        nowhere.kinds()
    job = client.submit("ocr", source={"type": "prefix", "url": "s3://scans/"})
    with pytest.raises(WaitTimeout):
        client.wait(job.id, timeout=1)


def test_the_same_walk_on_an_event_loop(api: Served) -> None:
    async def walk() -> None:
        async with AsyncClient(api.url, api_key=api.caller.key) as client:
            file = await client.files.upload(b"bytes", filename="a.png")
            job = await client.submit("ocr", source={"type": "files", "file_ids": [file.id]})
            worker = HandWorker(api.database, job.id)
            waiting = asyncio.create_task(_wait(client, job.id))
            await asyncio.to_thread(worker.plan, ["a.png"])
            await asyncio.to_thread(worker.finish, {0: "text"})
            assert (await waiting).state == "succeeded"
            assert [result.text async for result in client.results(job.id)] == ["text"]
            assert [found.id async for found in client.jobs()] == [job.id]

    asyncio.run(walk())


async def _wait(client: AsyncClient, job_id: str) -> Job:
    return await client.wait(job_id, timeout=60)


def test_waiting_survives_a_restart_of_the_server(api: Served, client: Client) -> None:
    job = client.submit("ocr", source={"type": "prefix", "url": "s3://scans/"})
    worker = HandWorker(api.database, job.id)
    with pytest.raises(WaitTimeout):
        client.wait(job.id, timeout=0.5)
    worker.plan(["a.png"])
    worker.finish({0: "text"})
    assert client.wait(job.id, timeout=30).state == "succeeded"
