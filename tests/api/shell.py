"""`batchsight` as a person or a script runs it: real processes over pipes or on a pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from dataclasses import dataclass
from pathlib import Path

from tests.api.conftest import Served

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0

# A new session whose controlling terminal is stdin: only then does Ctrl-C mean anything.
_TAKE_TERMINAL = """
import os, sys, fcntl, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|[@-Z\\-_])")
_COLOUR = re.compile(r"\x1b\[[0-9;]*?(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;[0-9;]*)?m")


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What a terminal was sent."""

    code: int
    raw: str

    @property
    def text(self) -> str:
        """Without control sequences; what was drawn over is still there."""
        return _SEQUENCE.sub("", self.raw)

    @property
    def moves(self) -> bool:
        """Whether the cursor was moved: something is animated."""
        return re.search(r"\x1b\[[0-9;]*[A-HJKf]", self.raw) is not None

    @property
    def coloured(self) -> bool:
        """Whether a colour was set."""
        return _COLOUR.search(self.raw) is not None


class Terminal:
    """A process on a pseudo-terminal of its own."""

    def __init__(self, command: list[str], *, folder: Path, environment: dict[str, str], columns: int) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-c", _TAKE_TERMINAL, *command],
            cwd=folder,
            env=environment,
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)
        self._pieces: list[bytes] = []

    def read_until(self, text: str) -> None:
        """Read on until this text has been drawn."""
        until = time.monotonic() + PATIENCE
        while text not in self._drawn() and self._read():
            assert time.monotonic() < until, f"{text!r} was never drawn: {self._drawn()!r}"
        assert text in self._drawn(), self._drawn()

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._master, keys)

    def end(self) -> Drawn:
        """Read to the end of the process."""
        until = time.monotonic() + PATIENCE
        while self._read():
            assert time.monotonic() < until, self._drawn()
        os.close(self._master)
        return Drawn(code=self.process.wait(30), raw=self._drawn())

    def _drawn(self) -> str:
        return b"".join(self._pieces).decode("utf-8", "replace")

    def _read(self) -> bool:
        ready, _, _ = select.select([self._master], [], [], 0.2)
        if not ready:
            return self.process.poll() is None
        try:
            piece = os.read(self._master, 65_536)
        except OSError:  # Linux says so when the last writer has closed
            return False
        self._pieces.append(piece)
        return bool(piece)


class Shell:
    """Runs `batchsight` in an empty folder with nothing of ours in the environment but what is given."""

    def __init__(self, api: Served, folder: Path) -> None:
        self.folder = folder
        self.environment: dict[str, str] = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "error",
            "BATCHSIGHT_URL": api.url,
            "BATCHSIGHT_API_KEY": api.caller.key,
            "COLUMNS": "200",
        }

    def command(self, *words: str) -> list[str]:
        """The words of a command."""
        return [sys.executable, "-m", "api.cli.main", *words]

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run it over pipes, as a script does."""
        return subprocess.run(
            self.command(*words),
            cwd=self.folder,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def start_in_terminal(self, *words: str, columns: int = 200, **environment: str) -> Terminal:
        """Start it on a pseudo-terminal, as a person does."""
        known = {name: value for name, value in self.environment.items() if name != "COLUMNS"}
        return Terminal(
            self.command(*words),
            folder=self.folder,
            environment={**known, "TERM": "xterm-256color", **environment},
            columns=columns,
        )

    def in_terminal(self, *words: str, columns: int = 200, **environment: str) -> Drawn:
        """Run it on a pseudo-terminal to its end."""
        return self.start_in_terminal(*words, columns=columns, **environment).end()
