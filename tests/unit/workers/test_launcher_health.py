from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from workers.probe import answers

LAUNCH = """
import sys
from workers.gpu import Launcher
child = [sys.executable, "-c", sys.argv[1]]
sys.exit(Launcher([("0",), ("1",)], command=child, health_port=int(sys.argv[2])).run())
"""
CHILD = """
import os, pathlib, sys, time, signal
from workers.health import HealthServer
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
sick = pathlib.Path(os.environ["TEST_FOLDER"], "sick-" + os.environ["CUDA_VISIBLE_DEVICES"])
HealthServer(int(os.environ["BATCHSIGHT_HEALTH_PORT"]), lambda: not sick.exists(), host="127.0.0.1")
time.sleep(60)
"""


def three_free_ports() -> int:
    """The first of three ports in a row that are free."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            first: int = probe.getsockname()[1]
        try:
            for port in (first, first + 1, first + 2):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError):
            continue
        return first


def until(condition: Callable[[], bool]) -> bool:
    for _ in range(500):
        if condition():
            return True
        time.sleep(0.04)
    return False


def test_the_launcher_is_healthy_while_any_of_its_groups_is(tmp_path: Path) -> None:
    port = three_free_ports()
    environment = {**os.environ, "TEST_FOLDER": str(tmp_path)}
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCH, CHILD, str(port)], env=environment)
    try:
        assert until(lambda: all(answers(f"http://127.0.0.1:{port + part}/healthz") for part in (0, 1, 2)))
        (tmp_path / "sick-0").touch()
        assert not answers(f"http://127.0.0.1:{port + 1}/healthz")
        assert answers(f"http://127.0.0.1:{port}/healthz")
        (tmp_path / "sick-1").touch()
        assert not answers(f"http://127.0.0.1:{port}/healthz")
        launcher.terminate()
        assert launcher.wait(20) == 0
    finally:
        if launcher.poll() is None:
            launcher.kill()
            launcher.wait()
