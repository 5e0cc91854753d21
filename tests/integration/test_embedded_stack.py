"""`python -m deploy.local`, as a person runs it, with an engine that needs no torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from api.client import Client


def until(condition: Callable[[], bool]) -> bool:
    for _ in range(1500):
        if condition():
            return True
        time.sleep(0.04)
    return False


def descendants(pid: int) -> set[int]:
    """A process and all below it."""
    found, queue = {pid}, [pid]
    while queue:
        for task in Path(f"/proc/{queue.pop()}/task").glob("*/children"):
            children = {int(child) for child in task.read_text().split()} - found
            found |= children
            queue += children
    return found


def running(pids: set[int]) -> set[int]:
    return {pid for pid in pids if alive(pid)}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def said(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


class CommandLine:
    """Runs it on one folder, and leaves nothing running."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        settings = ("DATABASE_URL", "REDIS_URL", "S3_ENDPOINT_URL", "MODEL")
        self.environment = {name: value for name, value in os.environ.items() if name not in settings}
        self.environment |= {"BATCHSIGHT_ENGINE": "fake", "BATCHSIGHT_ENGINE_THREADS": "1"}

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "deploy.local", *arguments, "--folder", str(self.folder)],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    def state(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.folder / "stack.json").read_text())
        return loaded


@pytest.fixture
def command_line(tmp_path: Path) -> Iterator[CommandLine]:
    line = CommandLine(tmp_path / "data")
    yield line
    line("down")


@pytest.mark.slow
def test_up_serves_twice_is_harmless_survives_kills_and_down_leaves_nothing(command_line: CommandLine) -> None:
    up = command_line("up", "--port", "0")
    assert up.returncode == 0, up.stderr
    state = command_line.state()
    assert state["api_url"] in up.stdout
    assert state["api_key"] in up.stdout
    everything = descendants(state["pid"])

    with Client(state["api_url"], api_key=state["api_key"]) as client:
        job = client.submit("chat", source={"type": "none"}, parameters=said("Hello"))
        assert client.wait(job.id, timeout=60).state == "succeeded"

        again = command_line("up", "--port", "0")
        assert again.returncode == 0
        assert state["api_url"] in again.stdout
        assert command_line.state()["pid"] == state["pid"]

        mine = {pid for pid in everything - {state["pid"]} if b"workers." in Path(f"/proc/{pid}/cmdline").read_bytes()}
        assert len(mine) >= 3
        for pid in mine:
            os.kill(pid, signal.SIGKILL)
        job = client.submit("chat", source={"type": "none"}, parameters=said("Again"))
        assert client.wait(job.id, timeout=90).state == "succeeded"

    everything |= descendants(state["pid"])
    down = command_line("down")
    assert down.returncode == 0, down.stderr
    assert until(lambda: not running(everything)), running(everything)
    assert not (command_line.folder / "stack.json").exists()
    assert command_line("down").returncode == 0


@pytest.mark.slow
def test_a_second_up_finds_its_data_and_its_key_and_kill_9_leaves_nothing(command_line: CommandLine) -> None:
    assert command_line("up", "--port", "0").returncode == 0
    key = command_line.state()["api_key"]
    assert command_line("down").returncode == 0
    assert command_line("up", "--port", "0").returncode == 0
    state = command_line.state()
    assert state["api_key"] == key
    request = urllib.request.Request(f"{state['api_url']}/v1/jobs", headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200
    everything = descendants(state["pid"])
    os.kill(state["pid"], signal.SIGKILL)
    assert until(lambda: not running(everything)), running(everything)
    # The state file that it left names a process that is gone: the next start is not fooled.
    assert command_line("up", "--port", "0").returncode == 0


def test_down_never_touches_a_process_that_is_not_the_stack_s(command_line: CommandLine) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as stranger:
        command_line.folder.mkdir()
        (command_line.folder / "stack.json").write_text(json.dumps({"pid": stranger.pid}))
        down = command_line("down")
        assert "nothing is up" in down.stderr
        assert stranger.poll() is None
        stranger.kill()


@pytest.mark.slow
def test_a_stack_that_cannot_start_says_why_and_leaves_nothing(command_line: CommandLine) -> None:
    command_line.environment |= {"BATCHSIGHT_ENGINE": "local", "MODEL": "/no/such/checkpoint"}
    up = command_line("up", "--port", "0")
    assert up.returncode == 1
    assert "gpu does not start" in up.stderr
    assert "/no/such/checkpoint" in up.stderr
    assert not (command_line.folder / "stack.json").exists()
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(command_line.folder) not in listed
