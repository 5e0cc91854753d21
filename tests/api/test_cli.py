"""The command line as a person or a script drives it: real processes, pipes and a pseudo-terminal."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from api.client import Client
from tests.api.conftest import PEPPER, Served
from tests.api.shell import Shell
from tests.api.work import MISSING, HandWorker


@pytest.fixture
def shell(api: Served, tmp_path: Path) -> Shell:
    return Shell(api, tmp_path)


def finish_soon(api: Served, client: Client, answers: Mapping[int, object], names: list[str]) -> threading.Thread:
    """End the first job that appears, a moment later, as workers would."""

    def work() -> None:
        for _ in range(600):
            job = next(iter(client.jobs()), None)
            if job is not None:
                worker = HandWorker(api.database, job.id)
                worker.plan(names)
                worker.finish(dict(answers))  # type: ignore[arg-type]  # texts and failures, as the test wrote them
                return
            time.sleep(0.1)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_submitting_and_waiting_in_a_pipe(api: Served, client: Client, shell: Shell) -> None:
    (shell.folder / "scan.png").write_bytes(b"pixels")
    worker = finish_soon(api, client, {0: "the text"}, ["scan.png"])
    done = shell.run("submit", "ocr", "scan.png", "--param", "max_tiles=6", "-p", "output=markdown", "--wait", "--json")
    worker.join()
    assert done.returncode == 0, done.stderr
    job = json.loads(done.stdout)  # stdout is data alone
    assert job["state"] == "succeeded"
    assert job["parameters"]["max_tiles"] == 6
    assert job["parameters"]["output"] == "markdown"
    assert "uploading scan.png" in done.stderr
    assert "\x1b[" not in done.stderr + done.stdout

    texts = shell.run("results", job["id"])
    assert texts.stdout == "── scan.png\nthe text\n\n"
    assert json.loads(shell.run("results", job["id"], "--json").stdout)["text"] == "the text"
    assert shell.run("results", job["id"], "-f", "markdown", "-o", "out.md").returncode == 0
    assert "# scan.png" in (shell.folder / "out.md").read_text()
    assert "succeeded" in shell.run("status", job["id"]).stdout
    assert "scan.png" in shell.run("items", job["id"]).stdout
    assert job["id"] in shell.run("jobs").stdout
    assert "Read the text" in shell.run("kinds").stdout


def test_exit_codes(api: Served, client: Client, shell: Shell) -> None:
    job = client.submit("ocr", source={"type": "prefix", "url": "s3://scans/"})
    assert shell.run("watch", job.id, "--timeout", "1").returncode == 75
    worker = HandWorker(api.database, job.id)
    worker.plan(["a.png", "b.png"])
    worker.finish({0: "x", 1: MISSING})
    watched = shell.run("watch", job.id)
    assert watched.returncode == 3
    assert "1 media_not_found" in watched.stdout
    redriven = shell.run("redrive", job.id, "--code", "media_not_found")
    child = redriven.stdout.strip()
    assert redriven.returncode == 0
    assert shell.run("cancel", child).returncode == 0
    assert shell.run("watch", child).returncode == 4
    assert shell.run("cancel", child).returncode == 1
    assert shell.run("status").returncode == 2
    assert shell.run("submit", "ocr", "no-such-file.png").returncode == 2
    assert shell.run("nonsense").returncode == 2
    assert shell.run("status", job.id, BATCHSIGHT_API_KEY="").returncode == 5
    assert shell.run("--api-key", "bs_x_y", "status", job.id).returncode == 5
    assert shell.run("status", "../x").returncode == 1
    refused = shell.run("submit", "ocr", "s3://secrets/")
    assert refused.returncode == 5, "a permission is missing"
    assert "source_forbidden" in refused.stderr
    assert refused.stdout == ""


def test_watching_in_a_terminal_draws_progress(api: Served, client: Client, shell: Shell) -> None:
    worker = finish_soon(api, client, {0: "x", 1: MISSING}, ["a.png", "b.png"])
    drawn = shell.in_terminal("submit", "ocr", "s3://scans/", "--wait")
    worker.join()
    assert drawn.code == 3, drawn.text
    assert drawn.moves
    assert "ocr partial" in drawn.text
    assert "2/2" in drawn.text
    assert "1 media_not_found" in drawn.text
    job = next(iter(client.jobs()))
    assert "partial" in shell.in_terminal("status", job.id, NO_COLOR="1").text


def test_an_interrupt_ends_with_130(client: Client, shell: Shell) -> None:
    job = client.submit("ocr", source={"type": "prefix", "url": "s3://scans/"})
    process = subprocess.Popen(
        shell.command("watch", job.id), cwd=shell.folder, env=shell.environment, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    assert process.stderr.readline()  # it has begun to watch
    process.send_signal(2)
    assert process.wait(30) == 130
    process.stderr.close()
    assert client.job(job.id).state == "queued"  # the job goes on


def test_files(shell: Shell) -> None:
    (shell.folder / "a.bin").write_bytes(b"abc")
    file_id = shell.run("files", "upload", "a.bin").stdout.strip()
    assert file_id.startswith("file-")
    assert "a.bin" in shell.run("files", "list").stdout
    assert shell.run("files", "download", file_id, "-o", "b.bin").returncode == 0
    assert (shell.folder / "b.bin").read_bytes() == b"abc"
    assert shell.run("files", "delete", file_id).returncode == 0
    assert shell.run("files", "delete", file_id).returncode == 1


def test_an_operator_makes_the_first_key(api: Served, shell: Shell) -> None:
    direct = {
        "DATABASE_URL": api.settings.database_url,
        "BATCHSIGHT_API_KEY_PEPPER": PEPPER,
        "BATCHSIGHT_API_KEY": "",
    }
    assert shell.run("admin", "tenant", "create", "north", "--bucket", "north", **direct).returncode == 0
    assert shell.run("admin", "tenant", "create", "north", **direct).returncode == 1
    assert "north" in shell.run("admin", "tenant", "list", **direct).stdout
    made = shell.run("admin", "key", "create", "north", "--name", "ci", **direct)
    key = made.stdout.strip()
    assert key.startswith("bs_")
    assert key not in made.stderr
    assert shell.run("jobs", BATCHSIGHT_API_KEY=key).returncode == 0
    listed = json.loads(shell.run("admin", "key", "list", "north", "--json", **direct).stdout)
    assert shell.run("admin", "key", "revoke", "north", listed["key_id"], **direct).returncode == 0
    assert shell.run("admin", "key", "revoke", "north", listed["key_id"], **direct).returncode == 1
    assert shell.run("admin", "key", "create", "nobody", **direct).returncode == 1
    short = shell.run("admin", "key", "create", "north", **{**direct, "BATCHSIGHT_API_KEY_PEPPER": "short"})
    assert short.returncode == 1
    assert "BATCHSIGHT_API_KEY_PEPPER" in short.stderr


def test_the_server_says_what_it_would_serve(api: Served, shell: Shell) -> None:
    done = shell.run("serve", "--check", "--port", "1234", DATABASE_URL=api.settings.database_url)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["port"] == 1234
