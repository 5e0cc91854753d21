"""What the client streams, over a connection that breaks: nothing is lost, nothing comes twice."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from api.client import AsyncClient, Client, ConnectionFailed, NotFound, RetryPolicy
from api.client.models import Job
from tests.api.conftest import Served
from tests.api.work import MISSING, HandWorker
from tests.chaos.proxy import Proxy

FAST = RetryPolicy(retries=3, base=0.01)
PATIENCE = 60.0


class Breaking(Proxy):
    """Breaks the next `cuts` answers when they have grown past `after` bytes."""

    def __init__(self, api: Served) -> None:
        super().__init__()
        self.upstream = urlsplit(api.url).port or 0
        self.cuts = 0
        self.after = 0
        self._passed: dict[int, int] = {}

    def answer(self, data: bytes, client: socket.socket) -> bool:
        """Forward, or break off."""
        passed = self._passed[id(client)] = self._passed.get(id(client), 0) + len(data)
        if self.cuts and passed > self.after:
            self.cuts -= 1
            client.sendall(data[: len(data) - (passed - self.after)])
            return False
        return super().answer(data, client)


@pytest.fixture
def breaking(api: Served) -> Iterator[Breaking]:
    proxy = Breaking(api)
    yield proxy
    proxy.close()


@pytest.fixture
def through(api: Served, breaking: Breaking) -> Iterator[Client]:
    with Client(f"http://127.0.0.1:{breaking.port}", api_key=api.caller.key, retry=FAST) as made:
        yield made


def finished(api: Served, client: Client, items: int) -> Job:
    job = client.submit("ocr", source={"type": "prefix", "url": "s3://scans/"})
    worker = HandWorker(api.database, job.id)
    worker.plan([f"{number}.png" for number in range(items)])
    worker.finish({number: f"text {number} " + "x" * 500 for number in range(items)})
    return job


def test_events_go_on_behind_the_last_one_when_the_connection_breaks(
    api: Served, client: Client, through: Client, breaking: Breaking
) -> None:
    job = client.submit("ocr", source={"type": "prefix", "url": "s3://scans/"})
    worker = HandWorker(api.database, job.id)
    seen: list[Job] = []
    heard = threading.Event()

    def follow() -> None:
        for version in through.events(job.id):
            seen.append(version)
            heard.set()

    following = threading.Thread(target=follow)
    following.start()
    assert heard.wait(PATIENCE)
    breaking.cuts, breaking.after = 1, 0  # whatever comes next breaks the connection
    worker.plan(["a.png", "b.png"])
    worker.finish({0: "x"})
    worker.finish({1: MISSING})
    following.join(PATIENCE)
    versions = [version.version for version in seen]
    assert versions == sorted(set(versions))
    assert seen[-1].state == "partial"
    assert breaking.cuts == 0
    assert list(client.events(job.id, after=versions[-1])) == []
    with pytest.raises(NotFound):
        list(client.events("01a20b88-d08c-70dc-ad21-3c0664f4e867"))


def test_events_of_a_server_that_stays_away_end_in_an_error(client: Client, breaking: Breaking, api: Served) -> None:
    job = client.submit("ocr", source={"type": "prefix", "url": "s3://scans/"})
    breaking.cuts, breaking.after = 100, 0
    address = f"http://127.0.0.1:{breaking.port}"
    with Client(address, api_key=api.caller.key, retry=FAST) as away, pytest.raises(ConnectionFailed):
        list(away.events(job.id))


def test_results_are_saved_line_by_line_over_breaks(
    api: Served, client: Client, through: Client, breaking: Breaking, tmp_path: Path
) -> None:
    job = finished(api, client, 1_300)
    whole = client.save_results(job.id, tmp_path / "whole.jsonl").read_bytes()
    assert [json.loads(line)["seq"] for line in whole.splitlines()] == list(range(1_300))
    breaking.cuts, breaking.after = 2, 300_000
    sizes: list[int] = []
    path = through.save_results(job.id, tmp_path / "out.jsonl", on_progress=lambda done, _: sizes.append(done))
    assert breaking.cuts == 0
    assert path.read_bytes() == whole
    assert sizes == sorted(sizes)
    assert sizes[-1] == len(whole)
    breaking.cuts, breaking.after = 1, 200_000
    text = through.save_results(job.id, tmp_path / "out.md", form="markdown").read_text()
    assert text == client.markdown(job.id)
    assert not list(tmp_path.glob("*.part"))


def test_a_download_that_fails_leaves_the_old_file(client: Client, tmp_path: Path) -> None:
    target = tmp_path / "kept.bin"
    target.write_bytes(b"old")
    with pytest.raises(NotFound):
        client.files.download("file-" + "0" * 32, target)
    assert target.read_bytes() == b"old"
    assert not list(tmp_path.glob("*.part"))


def test_files_go_up_and_down_with_their_progress(
    client: Client, through: Client, breaking: Breaking, tmp_path: Path
) -> None:
    data = bytes(range(256)) * 8_000
    path = tmp_path / "clip.bin"
    path.write_bytes(data)
    sent: list[tuple[int, int]] = []
    file = client.files.upload(path, expires_after=7_200, on_progress=lambda done, total: sent.append((done, total)))
    assert file.expires_at is not None
    assert sent[-1] == (len(data), len(data))
    assert [done for done, _ in sent] == sorted(done for done, _ in sent)
    small: list[tuple[int, int]] = []
    client.files.upload(b"bytes", filename="a", on_progress=lambda done, total: small.append((done, total)))
    assert small[-1] == (5, 5)
    breaking.cuts, breaking.after = 1, 900_000
    got: list[tuple[int, int | None]] = []
    target = through.files.download(
        file.id, tmp_path / "again.bin", on_progress=lambda done, all_: got.append((done, all_))
    )
    assert target.read_bytes() == data
    assert got[-1] == (len(data), len(data))


def test_the_same_on_an_event_loop(api: Served, client: Client, breaking: Breaking, tmp_path: Path) -> None:
    job = finished(api, client, 700)
    path = tmp_path / "a.bin"
    path.write_bytes(b"abc" * 100_000)

    async def walk() -> None:
        address = f"http://127.0.0.1:{breaking.port}"
        async with AsyncClient(address, api_key=api.caller.key, retry=FAST) as made:
            sent: list[int] = []
            file = await made.files.upload(path, on_progress=lambda done, _: sent.append(done))
            assert sent[-1] == 300_000
            assert [version.state async for version in made.events(job.id)] == ["succeeded"]
            breaking.cuts, breaking.after = 1, 200_000
            saved = await made.save_results(job.id, tmp_path / "out.jsonl")
            assert len(saved.read_bytes().splitlines()) == 700
            breaking.cuts = 1
            assert (await made.files.download(file.id, tmp_path / "b.bin")).read_bytes() == path.read_bytes()
            assert breaking.cuts == 0
            assert (await made.usage()).jobs == 1

    asyncio.run(walk())


def test_usage_and_what_the_model_saw(api: Served, client: Client) -> None:
    job = client.submit("ocr", source={"type": "prefix", "url": "s3://scans/"})
    worker = HandWorker(api.database, job.id, api.app.state.services.blobs)
    worker.plan(["a.png"])
    worker.finish({0: "text"})
    report = client.usage()
    assert (report.jobs, report.spent.tiles, report.active_items) == (1, 3, 0)
    assert client.item_tiles(job.id, 0)[:2] == b"\x89P"
