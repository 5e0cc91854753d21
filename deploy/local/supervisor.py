"""Keeps named processes and servers alive: starts them, restarts what dies, stops them in order, leaves nothing behind.

Everything is started, restarted and stopped on one thread that lives as long as the supervisor: the kernel's
parent-death signal follows the thread, so even `kill -9` of the supervisor ends them all; and a stop cannot overtake a
restart.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from deploy.local.server import Server, guarded

_TICK = 0.2
_LONGEST_PAUSE = 10.0
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Program:
    """A process to keep alive. `grace`: seconds between SIGTERM and SIGKILL when it is stopped."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    grace: float = 15.0


class _Deaths:
    """When something died lately, and when it may start again: at once at first, then with a growing pause."""

    def __init__(self, *, most: int, window: float, pause: float) -> None:
        self._most, self._window, self._pause = most, window, pause
        self._times: deque[float] = deque()
        self._next_start = 0.0

    def add(self) -> int:
        """Count a death; how many there were within the window."""
        now = time.monotonic()
        self._times.append(now)
        while self._times[0] < now - self._window:
            self._times.popleft()
        self._next_start = now + min(_LONGEST_PAUSE, self._pause * 2.0 ** (len(self._times) - 1))
        return self.count

    @property
    def count(self) -> int:
        """How many there were within the window before the last one."""
        return len(self._times)

    @property
    def too_many(self) -> bool:
        """It is hopeless."""
        return len(self._times) > self._most

    @property
    def may_start(self) -> bool:
        """The pause is over."""
        return time.monotonic() >= self._next_start


class Supervisor:
    """Runs programs until `stop`. `gave_up` says why nothing is restarted any more: `most_deaths` within `window` s."""

    def __init__(self, logs: Path, *, most_deaths: int = 8, window: float = 60.0, pause: float = 0.2) -> None:
        self._logs = logs
        self._most_deaths, self._window, self._pause = most_deaths, window, pause
        self._programs: dict[str, Program] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._servers: list[Server] = []
        self._deaths: dict[str, _Deaths] = {}
        self._down: set[str] = set()
        self.gave_up: str | None = None
        self._work: queue.SimpleQueue[tuple[Callable[[], object], Future[None]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._thread.start()

    def start(self, program: Program) -> None:
        """Start a program and keep it alive."""
        self._deaths[program.name] = _Deaths(most=self._most_deaths, window=self._window, pause=self._pause)
        self._on_thread(lambda: self._spawn(program))

    def serve(self, server: Server) -> None:
        """Start a server, wait until it answers, and keep it alive; its own `stop` and `kill` are respected.

        Raises `ConfigurationError` where it does not start.
        """
        self._deaths[server.name] = _Deaths(most=self._most_deaths, window=self._window, pause=self._pause)
        self._on_thread(server.start)
        self._on_thread(lambda: self._servers.append(server))

    def pid(self, name: str) -> int:
        """The present process of a program; 0 while it is down."""
        process = self._processes.get(name)
        return process.pid if process is not None and process.poll() is None else 0

    def deaths(self, name: str) -> int:
        """How often it died lately."""
        return self._deaths[name].count

    def log(self, name: str) -> Path:
        """Where a program writes."""
        return self._logs / f"{name}.log"

    def stop(self) -> None:
        """SIGTERM to the programs in the order of their start, SIGKILL after each one's grace; then the servers.

        Repeatable.
        """
        if self._thread.is_alive():
            self._on_thread(self._stop_all)
            self._work.put(None)
            self._thread.join()

    def _on_thread(self, call: Callable[[], object]) -> None:
        done: Future[None] = Future()
        self._work.put((call, done))
        done.result()

    def _run(self) -> None:
        while True:
            try:
                entry = self._work.get(timeout=_TICK)
            except queue.Empty:
                with contextlib.suppress(OSError):  # no process or port to be had: tried again at the next tick
                    self._revive()
                continue
            if entry is None:
                return
            call, done = entry
            try:
                call()
                done.set_result(None)
            except Exception as error:  # noqa: BLE001 - it belongs to the caller; this thread must live on
                done.set_exception(error)

    def _revive(self) -> None:
        for server in self._servers:
            if server.died:
                self._bury(server.name, 0, server.log)
                if self._may_restart(server.name):
                    server.launch()
        for name, process in list(self._processes.items()):
            if process.poll() is not None:
                _kill_group(process)  # what a killed pool left behind
                self._bury(name, process.returncode, self.log(name))
                if self._may_restart(name):
                    self._spawn(self._programs[name])

    def _bury(self, name: str, code: int, log: Path) -> None:
        if name in self._down:
            return  # counted already; it waits for its restart
        self._down.add(name)
        deaths = self._deaths[name]
        count = deaths.add()
        _log.warning("process_died", program=name, code=code, deaths=count)
        if deaths.too_many and self.gave_up is None:
            self.gave_up = f"{name} died {count} times within {self._window:.0f} s; see {log}"

    def _may_restart(self, name: str) -> bool:
        ready = self.gave_up is None and self._deaths[name].may_start
        if ready:
            self._down.discard(name)
        return ready

    def _spawn(self, program: Program) -> None:
        self._programs[program.name] = program
        self._logs.mkdir(parents=True, exist_ok=True)
        with self.log(program.name).open("ab") as log:
            self._processes[program.name] = subprocess.Popen(
                # SIGKILL: work is safe against it by design, and a drain would hang once the servers are gone too.
                guarded(signal.SIGKILL, (), program.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **program.environment},
                start_new_session=True,  # Ctrl-C reaches the supervisor alone, who stops in order
            )

    def _stop_all(self) -> None:
        for process in self._processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        for name, process in self._processes.items():
            grace = self._programs[name].grace
            try:
                process.wait(max(0.0, began + grace - time.monotonic()))
            except subprocess.TimeoutExpired:
                _log.warning("process_killed", program=name, grace=grace)
            _kill_group(process)
        self._processes.clear()
        while self._servers:
            self._servers.pop().stop()


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the process and whatever is left of its session."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
