"""The command line as a person sees it, on a pseudo-terminal; and that nothing of it reaches a pipe."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.client import Client
from api.client.models import Job
from tests.api.conftest import Served, serving
from tests.api.shell import Shell
from tests.api.work import MISSING, HandWorker

ITEMS = 6


@pytest.fixture
def shell(api: Served, tmp_path: Path) -> Shell:
    return Shell(api, tmp_path)


@pytest.fixture
def job(client: Client) -> Job:
    return client.submit("ocr", source={"type": "prefix", "url": "s3://scans/"})


class StepByStep:
    """Plans a job at once, and ends its items one after the other, each when it is told."""

    def __init__(self, api: Served, job: Job) -> None:
        self._worker = HandWorker(api.database, job.id)
        self._worker.plan([f"{number}.png" for number in range(ITEMS)])
        self._left = iter(range(ITEMS))

    def step(self, *, fails: bool = False) -> None:
        """End the next item."""
        self._worker.finish({next(self._left): MISSING if fails else "x"})

    def rest(self) -> None:
        """End all others."""
        for number in self._left:
            self._worker.finish({number: "x"})


def test_progress_is_drawn_live_with_throughput_time_left_and_failures(
    api: Served, client: Client, shell: Shell, job: Job
) -> None:
    work = StepByStep(api, job)
    terminal = shell.start_in_terminal("watch", job.id)
    terminal.read_until("ocr running")
    terminal.read_until(f"0/{ITEMS}")
    work.step(fails=True)
    terminal.read_until("1 media_not_found")
    threading.Event().wait(1.1)  # a rate needs a second
    work.step()
    terminal.read_until("/s")
    terminal.read_until(f"2/{ITEMS}")
    work.rest()
    drawn = terminal.end()
    assert drawn.code == 3
    assert drawn.moves
    assert f"{ITEMS}/{ITEMS}" in drawn.text
    assert "ocr partial" in drawn.text
    assert f"{ITEMS} of {ITEMS} ended: {ITEMS - 1} succeeded, 1 failed" in drawn.text


def test_no_colour_where_none_is_wanted(api: Served, shell: Shell, job: Job) -> None:
    StepByStep(api, job).rest()
    assert shell.in_terminal("watch", job.id).coloured
    plain = shell.in_terminal("watch", job.id, NO_COLOR="1")
    assert not plain.coloured
    assert plain.code == 0
    assert f"{ITEMS}/{ITEMS}" in plain.text
    dumb = shell.in_terminal("watch", job.id, TERM="dumb")
    assert not dumb.moves
    assert not dumb.coloured


def test_a_narrow_terminal_still_shows_state_and_count(api: Served, shell: Shell, job: Job) -> None:
    StepByStep(api, job).rest()
    drawn = shell.in_terminal("watch", job.id, columns=60)
    assert drawn.code == 0
    assert "ocr succeeded" in drawn.text
    assert f"{ITEMS}/{ITEMS}" in drawn.text


def test_control_c_ends_with_130_and_says_how_to_resume(client: Client, shell: Shell, job: Job) -> None:
    terminal = shell.start_in_terminal("watch", job.id)
    terminal.read_until("ocr queued")
    terminal.type(b"\x03")
    drawn = terminal.end()
    assert drawn.code == 130
    assert f"batchsight watch {job.id}" in drawn.text
    assert "Traceback" not in drawn.text
    assert client.job(job.id).state == "queued"


@pytest.mark.parametrize("forced", [{}, {"FORCE_COLOR": "1"}, {"TTY_COMPATIBLE": "1"}])
def test_nothing_moves_off_a_terminal(api: Served, shell: Shell, job: Job, forced: dict[str, str]) -> None:
    StepByStep(api, job).rest()
    done = shell.run("watch", job.id, "--json", **forced)
    assert json.loads(done.stdout)["state"] == "succeeded"
    assert "\x1b[" not in done.stdout
    assert "\r" not in done.stderr
    assert "\x1b[2K" not in done.stderr
    assert "succeeded" in done.stderr


def test_a_wait_that_is_too_long_ends_with_75_and_says_how_to_resume(shell: Shell, job: Job) -> None:
    done = shell.run("watch", job.id, "--timeout", "0.5")
    assert done.returncode == 75
    assert done.stdout == ""
    assert f"batchsight watch {job.id}" in done.stderr
    assert shell.run("status", job.id, BATCHSIGHT_URL="http://127.0.0.1:9").returncode == 75


def test_files_show_how_far_they_are(shell: Shell) -> None:
    (shell.folder / "a.bin").write_bytes(b"x" * 3_000_000)
    drawn = shell.in_terminal("files", "upload", "a.bin", "--expires-after", "7200")
    assert drawn.code == 0
    assert "3.0/3.0 MB" in drawn.text
    file_id = drawn.text.split()[-1]
    assert "3.0/3.0 MB" in shell.in_terminal("files", "download", file_id, "-o", "b.bin").text
    assert (shell.folder / "b.bin").stat().st_size == 3_000_000
    piped = shell.run("files", "upload", "a.bin")
    assert piped.stdout.startswith("file-")
    assert piped.stdout.count("\n") == 1
    assert piped.stderr == "uploading a.bin\n"
    listed = shell.run("files", "list", "--purpose", "batch", "--json")
    assert listed.stdout == ""


@pytest.fixture
def elsewhere(api: Served) -> Iterator[str]:
    """A second api over the same database, so that it can be seen which one was asked."""
    renamed = api.settings.model_copy(update={"gpu_second_cost": 2.0})
    with serving(renamed) as (url, _):
        yield url


def test_flags_win_over_the_environment_then_env_file_then_user_config_then_defaults(
    api: Served, shell: Shell, job: Job, elsewhere: str
) -> None:
    worker = HandWorker(api.database, job.id)
    worker.plan(["a.png"])
    worker.finish({0: "x"})

    def cost(*flags: str, **environment: str) -> float | int:
        """Which server answered: the one that charges, or the other."""
        done = shell.run(*flags, "status", job.id, "--json", **environment)
        if done.returncode:
            return done.returncode
        found: float = json.loads(done.stdout)["usage"]["cost"]
        return found

    free, priced = 0.0, 1.0
    nothing = {"BATCHSIGHT_URL": "", "BATCHSIGHT_API_KEY": ""}
    assert cost(**nothing) == 5  # no key anywhere
    config = shell.folder / ".config" / "batchsight"
    config.mkdir(parents=True)
    (config / "config.toml").write_text(f'url = "{elsewhere}"\napi_key = "{api.caller.key}"\n')
    assert cost(**nothing) == priced
    (shell.folder / ".env").write_text(f"BATCHSIGHT_URL={api.url}\n")
    assert cost(**nothing) == free  # the key still comes from the user's file
    assert cost(BATCHSIGHT_URL=elsewhere) == priced
    assert cost("--url", api.url, BATCHSIGHT_URL=elsewhere) == free
    assert cost("--api-key", "bs_wrong_key") == 5
    (config / "config.toml").write_text("url = ")
    broken = shell.run("status", job.id, **nothing)
    assert broken.returncode == 1
    assert "config.toml" in broken.stderr


def test_usage_and_filtered_jobs(api: Served, client: Client, shell: Shell) -> None:
    marked = client.submit("ocr", source={"type": "prefix", "url": "s3://scans/"}, metadata={"case": "17"})
    client.submit("ocr", source={"type": "prefix", "url": "s3://scans/"})
    found = shell.run("jobs", "--metadata", "case=17", "--json")
    assert [json.loads(line)["id"] for line in found.stdout.splitlines()] == [marked.id]
    assert json.loads(shell.run("usage", "--json").stdout)["jobs"] == 2
    assert json.loads(shell.run("usage", "--json", "--since", "2999-01-01").stdout)["jobs"] == 0
    assert "2" in shell.run("usage").stdout
