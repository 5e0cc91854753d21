"""Keeps named processes alive: starts them, restarts what dies, stops them in order, leaves nothing behind.

Every process is started from one thread that lives as long as the supervisor: the kernel's parent-death signal follows
the thread, so even `kill -9` of the supervisor ends them all.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import structlog

_CHILD = Path(__file__).with_name("child.py")
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Program:
    """A process to keep alive. `grace`: seconds between SIGTERM and SIGKILL when it is stopped."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    grace: float = 15.0


class Supervisor:
    """Runs programs until `stop`. `gave_up` is set when one dies too often: `most_deaths` within `window` seconds."""

    def __init__(self, logs: Path, *, most_deaths: int = 8, window: float = 60.0, pause: float = 0.3) -> None:
        self._logs = logs
        self._most_deaths = most_deaths
        self._window = window
        self._pause = pause
        self._programs: dict[str, Program] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._deaths: dict[str, deque[float]] = {}
        self._stopping = threading.Event()
        self.gave_up: str | None = None
        self._work: queue.SimpleQueue[tuple[Callable[[], None], Future[None]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._thread.start()

    def start(self, program: Program) -> None:
        """Start a program and keep it alive."""
        self._programs[program.name] = program
        self._deaths[program.name] = deque()
        self._on_thread(lambda: self._spawn(program))

    def pid(self, name: str) -> int:
        """The present process of a program; 0 while it is down."""
        process = self._processes.get(name)
        return process.pid if process is not None and process.poll() is None else 0

    def log(self, name: str) -> Path:
        """Where a program writes."""
        return self._logs / f"{name}.log"

    def stop(self) -> None:
        """SIGTERM to all at once in the order of their start, reversed; SIGKILL after each one's grace. Repeatable."""
        self._stopping.set()
        order = list(reversed(self._programs.values()))
        for program in order:
            process = self._processes.get(program.name)
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGTERM)
        until = time.monotonic()
        for program in order:
            process = self._processes.get(program.name)
            if process is None:
                continue
            try:
                process.wait(max(0.1, until + program.grace - time.monotonic()))
            except subprocess.TimeoutExpired:
                _log.warning("process_killed", program=program.name, grace=program.grace)
                _kill_group(process)
        self._work.put(None)
        self._thread.join(10)

    def _on_thread(self, call: Callable[[], None]) -> None:
        done: Future[None] = Future()
        self._work.put((call, done))
        done.result(30)

    def _run(self) -> None:
        while True:
            try:
                entry = self._work.get(timeout=self._pause)
            except queue.Empty:
                self._revive()
                continue
            if entry is None:
                return
            call, done = entry
            try:
                call()
                done.set_result(None)
            except OSError as error:
                done.set_exception(error)

    def _revive(self) -> None:
        for name, program in self._programs.items():
            process = self._processes.get(name)
            if self._stopping.is_set() or self.gave_up or process is None or process.poll() is None:
                continue
            _kill_group(process)  # what a killed pool left behind
            now = time.monotonic()
            deaths = self._deaths[name]
            deaths.append(now)
            while deaths and deaths[0] < now - self._window:
                deaths.popleft()
            _log.warning("process_died", program=name, code=process.returncode, deaths=len(deaths))
            if len(deaths) > self._most_deaths:
                self.gave_up = f"{name} died {len(deaths)} times within {self._window:.0f} s; see {self.log(name)}"
                return
            if not self._stopping.is_set():
                self._spawn(program)

    def _spawn(self, program: Program) -> None:
        self._logs.mkdir(parents=True, exist_ok=True)
        with self.log(program.name).open("ab") as log:
            self._processes[program.name] = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_CHILD), str(int(signal.SIGTERM)), *program.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **program.environment},
                start_new_session=True,
            )


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the process and whatever is left of its session."""
    with contextlib.suppress(ProcessLookupError):  # the whole group has gone already
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
