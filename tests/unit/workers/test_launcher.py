from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

LAUNCH = """
import sys
from workers.gpu import Launcher
child = [sys.executable, "-c", sys.argv[1]]
sys.exit(Launcher([("0",), ("1",)], command=child).run())
"""

CHILD = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
folder = pathlib.Path(os.environ["TEST_FOLDER"])
name = os.environ["CUDA_VISIBLE_DEVICES"]
starts = len(list(folder.glob(f"start-{name}-*")))
(folder / f"start-{name}-{starts}").write_text(str(os.getpid()))
time.sleep(60)
"""


def _wait_for(path: Path) -> int:
    for _ in range(1000):
        if path.exists() and path.read_text():
            return int(path.read_text())
        time.sleep(0.02)
    raise AssertionError(f"{path.name} never appeared")


def test_each_group_sees_its_own_device_is_restarted_and_stops_with_the_launcher(tmp_path: Path) -> None:
    environment = {**os.environ, "TEST_FOLDER": str(tmp_path)}
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCH, CHILD], env=environment)
    try:
        first = _wait_for(tmp_path / "start-0-0")
        _wait_for(tmp_path / "start-1-0")
        os.kill(first, signal.SIGKILL)
        second = _wait_for(tmp_path / "start-0-1")
        assert second != first
        launcher.send_signal(signal.SIGTERM)
        assert launcher.wait(20) == 0
    finally:
        if launcher.poll() is None:
            launcher.kill()
            launcher.wait()
