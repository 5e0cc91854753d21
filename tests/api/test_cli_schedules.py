"""`batchsight schedule` as a person or a script drives it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from api.client import Client
from tests.api.conftest import Served
from tests.api.shell import Shell


@pytest.fixture
def shell(api: Served, tmp_path: Path) -> Shell:
    return Shell(api, tmp_path)


def test_a_schedules_life(client: Client, shell: Shell) -> None:
    words = ("nightly", "30 2 * * *", "ocr", "s3://scans/{date}/", "--timezone", "Europe/Berlin", "-p", "max_tiles=6")
    made = shell.run("schedule", "create", *words, "-m", "team=archive")
    assert made.returncode == 0, made.stderr
    found = client.schedules.get(made.stdout.strip())
    assert (found.name, found.timezone, found.only_new, found.paused) == ("nightly", "Europe/Berlin", True, False)
    assert (found.job["parameters"]["max_tiles"], found.job["metadata"]) == (6, {"team": "archive"})
    assert found.job["source"] == {"type": "prefix", "url": "s3://scans/{date}/"}

    listed = shell.run("schedule", "list").stdout
    assert "nightly" in listed
    assert "30 2 * * *" in listed
    shown = shell.run("schedule", "show", "nightly").stdout
    assert "30 2 * * * in Europe/Berlin" in shown
    assert f"{found.next_runs[1]:%Y-%m-%d %H:%M%z}" in shown
    assert json.loads(shell.run("schedule", "show", found.id, "--json").stdout)["id"] == found.id

    assert "paused" in shell.run("schedule", "pause", "nightly").stdout
    job = shell.run("schedule", "run", "nightly", "--all").stdout.strip()
    assert client.job(job).schedule_id == found.id
    busy = shell.run("schedule", "run", "nightly")
    assert (busy.returncode, busy.stdout) == (1, "")
    assert job in busy.stderr
    history = shell.run("schedule", "history", "nightly").stdout
    assert "manual" in history
    assert job in history
    assert json.loads(shell.run("schedule", "history", "nightly", "--json").stdout)["only_new"] is False
    assert "paused" not in shell.run("schedule", "resume", "nightly").stdout

    assert shell.run("schedule", "delete", "nightly").returncode == 0
    assert shell.run("schedule", "show", found.id).returncode == 1
    assert shell.run("schedule", "show", "nightly").returncode == 2
    assert client.job(job).id == job


def test_what_is_wrong_is_said(shell: Shell) -> None:
    refused = shell.run("schedule", "create", "x", "30 2 * *", "ocr", "s3://scans/")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "five fields" in refused.stderr
    elsewhere = shell.run("schedule", "create", "x", "30 2 * * *", "ocr", "s3://scans/", "--timezone", "Berlin")
    assert "Europe/Berlin" in elsewhere.stderr
    assert shell.run("schedule", "create", "x", "30 2 * * *", "ocr", "s3://s/", "--overlap", "often").returncode == 2
