"""One server process of the embedded stack: it cannot outlive us, is awaited, stopped, killed, restarted."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
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
    return [sys.executable, "-I", "-S", str(_CHILD), *drop, str(os.getpid()), str(int(death_signal)), *command]


class Server:
    """One server. Subclasses say how it is started and when it answers.

    Start it from a thread that lives as long as it should: the kernel ends the process when that thread ends, also by
    `kill -9` (Linux alone; elsewhere an orderly stop is all there is).
    """

    name = "server"
    stop_signal = signal.SIGTERM
    death_signal = signal.SIGKILL
    grace = 20.0
    """Seconds that a stop may take before it is killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the running process; 0 while it is stopped."""
        return self._process.pid if self._process and self._process.poll() is None else 0

    @property
    def died(self) -> bool:
        """True after it ended without having been stopped or killed through this object."""
        return self._process is not None and self._process.poll() is not None

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

    def answers(self) -> bool:
        """Whether it serves requests."""
        return False

    def start(self, *, timeout: float = 60.0) -> Self:
        """Start and wait until it answers. Raises `ConfigurationError` with the end of its log."""
        for attempt in range(_TRIES):
            # A killed server's own children may hold its data for a moment after it.
            time.sleep(_PAUSE * attempt)
            self.launch()
            if self.wait_ready(timeout):
                return self
            self.kill()
        tail = self.log.read_text(errors="replace")[-2000:] if self.log.exists() else ""
        raise ConfigurationError(f"{self.name} did not start; the end of {self.log}:\n{tail}")

    def launch(self) -> None:
        """Start without waiting. A restart comes back on its port, so that clients find it again."""
        if self.pid:
            return
        self.prepare()
        self._choose_port()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                guarded(self.death_signal, self.drop(), self.command()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
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

    def wait_ready(self, timeout: float = 60.0) -> bool:
        """Wait until it answers; False if it ended or did not answer in time."""
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            if not self.pid:
                return False
            if self.answers():
                return True
            time.sleep(_POLL)
        return False

    def stop(self) -> None:
        """Stop it in its own way; what does not leave in time is killed. Repeatable."""
        self.end(self.stop_signal)

    def kill(self) -> None:
        """`kill -9`. Repeatable."""
        self.end(signal.SIGKILL)

    def end(self, number: signal.Signals) -> None:
        """Send a signal and wait until it has gone; kill it after `grace` seconds."""
        # Taken first: whoever watches this server must never see it dead before it is ours no more.
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(number)
            try:
                process.wait(self.grace)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

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
