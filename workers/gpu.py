"""`python -m workers.gpu`: the engine worker.

With one device group (or none) this process is the worker. With several it is their launcher: one child a group, each
with its own `CUDA_VISIBLE_DEVICES`, restarted when it dies, stopped with it. The launcher answers at the health port,
healthy while any group is; the groups' own endpoints (health and metrics) are at the ports behind it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType

import structlog

from pipelines.jobs.errors import BatchsightError
from pipelines.settings import Settings
from workers.devices import device_groups, visible_devices
from workers.health import HealthServer, health_url
from workers.probe import answers

_log = structlog.get_logger(__name__)

_GROUP_VARIABLE = "BATCHSIGHT_DEVICE_GROUP"
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0
_HEALTHY_AFTER = 120.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, then run the worker or the launcher."""
    parser = argparse.ArgumentParser(prog="python -m workers.gpu", description="Batchsight's engine worker")
    parser.add_argument("--check", action="store_true", help="print the device groups and settings, then exit")
    options = parser.parse_args(arguments)
    settings = Settings()
    try:
        groups = device_groups(settings, visible_devices())
    except BatchsightError as error:
        print(error.message, file=sys.stderr)
        return 1
    if options.check:
        print(json.dumps({"groups": groups, "slots": settings.engine_slots, "model": settings.model}))
        return 0
    if len(groups) == 1 or _GROUP_VARIABLE in os.environ:
        if groups[0]:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(groups[0])
        from workers.lifecycle import run_gpu_worker  # noqa: PLC0415 - loads torch: not in the launcher, not for --check

        return run_gpu_worker(settings)
    return Launcher(groups, health_host=settings.health_host, health_port=settings.health_port).run()


class Launcher:
    """Keeps one child a device group alive; a child that dies is started again, with a growing pause."""

    def __init__(
        self,
        groups: Sequence[tuple[str, ...]],
        *,
        command: Sequence[str] | None = None,
        health_host: str = "127.0.0.1",
        health_port: int = 0,
    ) -> None:
        self._groups = list(groups)
        self._health_host = health_host
        self._health_port = health_port
        self._command = list(command or [sys.executable, "-m", "workers.gpu"])
        self._children: list[subprocess.Popen[bytes] | None] = [None] * len(groups)
        self._stopping = threading.Event()

    def run(self) -> int:
        """Run until SIGTERM or SIGINT; 0 when every child left cleanly."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        threads = [
            threading.Thread(target=self._keep, args=(index,), name=f"group-{index}")
            for index in range(len(self._groups))
        ]
        for thread in threads:
            thread.start()
        health = None
        if self._health_port:
            health = HealthServer(self._health_port, self._healthy, host=self._health_host)
        for thread in threads:
            thread.join()
        if health is not None:
            health.close()
        return 0 if all(child is not None and child.returncode == 0 for child in self._children) else 1

    def _healthy(self) -> bool:
        # Any, not all: one group that loads its model again must not get the others killed by a liveness probe.
        ports = range(self._health_port + 1, self._health_port + 1 + len(self._groups))
        return any(answers(health_url(self._health_host, port)) for port in ports)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._stopping.set()
        for child in self._children:
            if child is not None and child.poll() is None:
                child.send_signal(number)

    def _keep(self, index: int) -> None:
        pause = _FIRST_PAUSE
        while not self._stopping.is_set():
            environment = {
                **os.environ,
                "CUDA_VISIBLE_DEVICES": ",".join(self._groups[index]),
                _GROUP_VARIABLE: str(index),
            }
            if self._health_port:
                environment["BATCHSIGHT_HEALTH_PORT"] = str(self._health_port + 1 + index)
            started = time.monotonic()
            child = subprocess.Popen(self._command, env=environment)  # noqa: S603 - our own module
            self._children[index] = child
            if self._stopping.is_set():
                child.terminate()  # the signal came between the check and the start
            code = child.wait()
            if self._stopping.is_set():
                return
            lived = time.monotonic() - started
            pause = _FIRST_PAUSE if lived > _HEALTHY_AFTER else min(_LONGEST_PAUSE, pause * 2)
            _log.error("engine_process_died", group=self._groups[index], code=code, lived=lived, pause=pause)
            self._stopping.wait(pause)


if __name__ == "__main__":
    sys.exit(main())
