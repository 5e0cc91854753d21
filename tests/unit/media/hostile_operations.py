"""The operations of a decoder child, with a weakness: a file that begins with `HOSTILE <deed>` makes the child do it.

It stands for bytes that exploit a real decoder; nothing of it can be reached through `pipelines.media.operations`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.media.operations import OPERATIONS as REAL
from pipelines.media.operations import Answer, Operation, Session

__all__ = ["OPERATIONS", "Session"]


def _segfault() -> None:
    ctypes.string_at(0)


def _abort() -> None:
    os.abort()


def _exit() -> None:
    os._exit(0)


def _hang() -> None:
    time.sleep(3600)


def _hang_deaf() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(3600)


def _hang_with_a_helper() -> None:
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    time.sleep(3600)


def _spin() -> None:
    while True:
        pass


def _memory_error() -> None:
    raise MemoryError


def _huge() -> None:
    np.ones(4 * 1024**3, np.uint8)


def _creep() -> None:
    kept = []
    while True:
        kept.append(bytearray(16 * 1024 * 1024))


def _killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _defect() -> None:
    raise ZeroDivisionError("a secret in a traceback")


def _garbage() -> None:
    os.write(_answers(), b"\0\0\0\x04nope" * 100)


def _endless() -> None:
    os.write(_answers(), b"\xff\xff\xff\xff" * 10)


def _chatter() -> None:
    os.write(1, b"ffmpeg was here\n" * 10_000)


def _write_much() -> None:
    with Path("/tmp/decoder-child-writes").open("wb") as file:
        try:
            for _ in range(1000):
                file.write(b"x" * 1024 * 1024)
        finally:
            Path(file.name).unlink()


def _answers() -> int:
    """The descriptor that answers go to: the one above the three standard ones."""
    return max(int(entry.name) for entry in Path("/proc/self/fd").iterdir() if entry.exists())


DEEDS = {
    "segfault": _segfault,
    "abort": _abort,
    "exit": _exit,
    "hang": _hang,
    "deaf": _hang_deaf,
    "helper": _hang_with_a_helper,
    "spin": _spin,
    "memory-error": _memory_error,
    "huge": _huge,
    "creep": _creep,
    "killed": _killed,
    "defect": _defect,
    "garbage": _garbage,
    "endless": _endless,
    "chatter": _chatter,
    "write-much": _write_much,
}


def _open(operation: Operation) -> Operation:
    def hostile(session: Session, request: dict[str, Any]) -> Answer:
        head = Path(request["path"]).read_bytes()[:200].split(b"\n")[0].decode("latin-1").split()
        page = str(request.get("page", ""))
        if head[:1] == ["HOSTILE"] and (len(head) == 2 or page in head[2:]):
            DEEDS[head[1]]()
        return operation(session, request)

    return hostile


def _describe(session: Session, request: dict[str, Any]) -> Answer:
    """What a child can see of its parent."""
    del session, request
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "type": "image/png",
        "pages": 1,
        "width": len(list(Path("/proc/self/fd").iterdir())),
        "height": int(status["NoNewPrivs"]),
        "frames": int(os.getsid(0) == os.getpid()),
        "fps": sum(name not in KNOWN for name in os.environ),
    }, ()


KNOWN = {
    "PATH",
    "LANG",
    "LC_CTYPE",
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MALLOC_ARENA_MAX",
    "KMP_INIT_AT_FORK",
    "KMP_DUPLICATE_LIB_OK",
}

OPERATIONS: dict[str, Operation] = {name: _open(operation) for name, operation in REAL.items()}
OPERATIONS["probe"] = lambda session, request: (
    _describe(session, request) if request["path"] == "/self" else _open(REAL["probe"])(session, request)
)
