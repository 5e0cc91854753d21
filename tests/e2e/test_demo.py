"""`make demo`, as a person runs it: real servers, real processes, a real (small) model."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def environment(**more: str) -> dict[str, str]:
    given = {name: value for name, value in os.environ.items() if not name.startswith(("BATCHSIGHT_", "MODEL", "S3_"))}
    return {name: value for name, value in given.items() if name not in {"DATABASE_URL", "REDIS_URL"}} | more


def demo(folder: Path) -> list[str]:
    return [sys.executable, "-m", "deploy.local", "demo", "--folder", str(folder)]


# Mean error rates of the demo's own answers with the bundled weights, as this run prints them. An answer hangs a little
# on what shares its batch, hence the margin.
MEASURED = {"letters": 0.061, "ledgers": 0.025, "scans": 0.162, "sheets": 0.285, "photos": 0.594, "clips": 0.0}
MARGIN = 0.02
_GROUPS = {"letters": "letters", "ledgers": "ledgers", "scan-": "scans", "photo-": "photos", "clip-": "clips"}
_ROW = re.compile(r"^│ (\S+\.\w+(?: p\.\d+)?) +│ (\S.*?) +│ (.*?) *│ (\d+\.\d{3}) *│$", re.MULTILINE)


def error_rates(printed: str) -> dict[str, list[float]]:
    """Read the table of answers: the error rates of each group of samples."""
    found: dict[str, list[float]] = {}
    for name, _expected, _answer, rate in _ROW.findall(printed):
        group = next((group for start, group in _GROUPS.items() if name.startswith(start)), "sheets")
        found.setdefault(group, []).append(float(rate))
    return found


def still_running(folder: Path) -> list[str]:
    """Processes that carry the folder in their command line or environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            seen = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in seen and process.name != str(os.getpid()):
            found.append(process.name)
    return found


@pytest.mark.slow
def test_the_demo_ends_well_and_leaves_nothing_but_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    done = subprocess.run(demo(folder), env=environment(), capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(folder) in done.stderr.replace("\n", "")
    for kind in ("ocr: partial", "caption: partial", "video_qa: succeeded"):
        assert kind in done.stderr
    assert re.search(r"broken\.png\W+corrupt_media", done.stdout)
    assert re.search(r"no-such-picture\.png\W+media_not_found", done.stdout)
    for name in ("letters.pdf p.8", "ledgers.tiff p.6", "scan-1.png", "photo-10.png", "clip-way.mp4"):
        assert name in done.stdout
    rates = error_rates(done.stdout)
    assert {group: len(each) for group, each in rates.items()} == {
        "letters": 8,
        "ledgers": 6,
        "scans": 6,
        "sheets": 4,
        "photos": 10,
        "clips": 3,
    }
    for group, each in rates.items():
        assert sum(each) / len(each) <= MEASURED[group] + MARGIN, (group, each)
    assert re.search(r"^39 items in [\d.]+ s: [\d.]+ items/s", done.stdout, re.MULTILINE)
    assert still_running(folder) == []
    assert (folder / "logs" / "gpu.log").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_in_the_middle_stops_everything(tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "demo"
    with subprocess.Popen(demo(folder), env=environment(BATCHSIGHT_ENGINE="fake"), stderr=subprocess.DEVNULL) as run:
        until = time.monotonic() + 60
        while not (folder / "logs" / "cpu.log").exists():
            assert run.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)
        run.send_signal(number)
        assert run.wait(60) == 130
    assert still_running(folder) == []
