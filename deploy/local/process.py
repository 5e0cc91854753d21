"""One child process of the embedded stack: started so that it cannot outlive us, awaited until ready, stopped, killed.

`Child` is the base of the servers (`deploy.local.servers`) and of `Service`, which runs one of our own processes. The
supervisor needs no more than this class.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from pipelines.jobs.errors import ConfigurationError

_CHILD = Path(__file__).with_name("child.py")
_TRIES = 5
_POLL = 0.02
_PAUSE = 0.5
_PORT_PATIENCE = 5.0


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def port_is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: closed connections do not count
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def guarded(death_signal: signal.Signals, drop: Sequence[str], command: Sequence[str]) -> list[str]:
    """The command behind `child.py`: it gets `death_signal` when its starter dies."""
    return [sys.executable, "-I", "-S", str(_CHILD), *drop, str(int(death_signal)), *command]


class Child:
    """One process. Subclasses say how it is started and when it answers.

    Start it from a thread that lives as long as it should: the kernel ends the process when that thread ends, also by
    `kill -9` (Linux alone; elsewhere an orderly stop is all there is).
    """

    name = "process"
    stop_signal = signal.SIGTERM
    death_signal = signal.SIGKILL
    grace = 20.0
    patience = 60.0
    """Seconds that a stop may take before it is killed, and a start before it counts as failed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the running process; 0 while it is stopped."""
        return self._process.pid if self._process and self._process.poll() is None else 0

    @property
    def exit_code(self) -> int | None:
        """How it ended (a negative signal number, or its status); None while it runs or was never started."""
        return self._process.poll() if self._process else None

    @property
    def log(self) -> Path:
        """Where it writes."""
        return self.folder / f"{self.name}.log"

    def prepare(self) -> None:
        """Make the data folder; called before each start."""
        self.folder.mkdir(parents=True, exist_ok=True)

    def command(self) -> Sequence[str]:
        """What to run, on `self.port`."""
        raise ConfigurationError(f"{self.name} has no command")

    def environment(self) -> Mapping[str, str]:
        """The whole environment of the process."""
        return os.environ

    def answers(self) -> bool:
        """Whether it serves requests."""
        return False

    def start(self, *, timeout: float | None = None) -> Self:
        """Start and wait until it answers. Raises `ConfigurationError` with the end of its log."""
        for attempt in range(_TRIES):
            # A killed server's own children may hold its data for a moment after it.
            time.sleep(_PAUSE * attempt)
            self.launch()
            if self.wait_ready(timeout):
                return self
            self.kill()
        raise ConfigurationError(f"{self.name} did not start; the end of {self.log}:\n{self.log_tail()}")

    def launch(self) -> None:
        """Start without waiting. A restart comes back on its port, so that clients find it again."""
        self.prepare()
        self._choose_port()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                guarded(self.death_signal, self.drop(), self.command()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(self.environment()),
                cwd=self.working_folder(),
                start_new_session=True,  # Ctrl-C reaches the supervisor, who stops its children in order
            )

    def _choose_port(self) -> None:
        until = time.monotonic() + _PORT_PATIENCE
        while self.port and not port_is_free(self.port):
            if time.monotonic() > until:
                self.port = 0  # somebody else has it by now
                break
            time.sleep(_POLL)
        self.port = self.port or free_port()

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait until it answers; False if it ended or did not answer in time."""
        until = time.monotonic() + (self.patience if timeout is None else timeout)
        while time.monotonic() < until:
            if not self.pid:
                return False
            if self.answers():
                return True
            time.sleep(_POLL)
        return False

    def log_tail(self, size: int = 2000) -> str:
        """The last bytes of its log."""
        return self.log.read_text(errors="replace")[-size:] if self.log.exists() else ""

    def signal_stop(self) -> None:
        """Ask it to stop, without waiting."""
        if self.pid and self._process is not None:
            self._process.send_signal(self.stop_signal)

    def stop(self, *, timeout: float | None = None) -> None:
        """Stop it in its own way; what does not leave in time, and what it leaves behind, is killed. Repeatable."""
        if self._process is None:
            return
        self.signal_stop()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(self.grace if timeout is None else timeout)
        self.kill()

    def kill(self) -> None:
        """`kill -9`, with what it started in its process group. Repeatable."""
        if self._process is not None:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
            self.reap()
            self._process = None

    def reap(self) -> None:
        """Kill what a process that has ended left behind in its group: pool children that outlived their parent."""
        if self._process is not None and self._process.poll() is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def restart(self) -> Self:
        """Stop and start, on the same port and data."""
        self.stop()
        return self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def drop(self) -> Sequence[str]:
        """`child.py`'s arguments for a process that may not run as root."""
        return ()

    def working_folder(self) -> Path:
        """Where it runs."""
        return self.folder


@dataclass(frozen=True, kw_only=True)
class Process:
    """One of our own processes. `environment` is laid over ours; `port_variable` gets the port it serves.

    `ready_path` is asked on that port: the process is ready once it answers 2xx. `grace`: seconds to stop in.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    port_variable: str | None = None
    port: int = 0
    ready_path: str = "/healthz"
    grace: float = 20.0
    patience: float = 120.0


class Service(Child):
    """Runs a `Process`, its log in `folder`."""

    def __init__(self, spec: Process, folder: Path) -> None:
        super().__init__(folder)
        self.spec = spec
        self.name = spec.name
        self.port = spec.port
        self.grace = spec.grace
        self.patience = spec.patience

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        """As specified."""
        return self.spec.command

    def environment(self) -> Mapping[str, str]:
        """Ours, the specified, the port."""
        port = {self.spec.port_variable: str(self.port)} if self.spec.port_variable else {}
        return {**os.environ, **self.spec.environment, **port}

    def answers(self) -> bool:
        """Its health endpoint answers 2xx; a process without a port is ready once it runs."""
        if self.spec.port_variable is None:
            return True
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback: never through a proxy
        try:
            with opener.open(f"{self.url}{self.spec.ready_path}", timeout=2) as reply:
                return bool(200 <= reply.status < 300)
        except (OSError, urllib.error.URLError):
            return False

    def working_folder(self) -> Path:
        """Ours, so that a `.env` file there counts for every process alike."""
        return Path.cwd()
