"""Looking at processes, for tests of the decoder pool."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

HOSTILE = "tests.unit.media.hostile_operations"


def hostile(folder: Path, deed: str) -> Path:
    path = folder / deed.replace(" ", "-")
    path.write_bytes(f"HOSTILE {deed}\n".encode())
    return path


def children_of(parent: int) -> set[int]:
    return {int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()} | {
        int(pid) for task in Path(f"/proc/{parent}/task").iterdir() for pid in (task / "children").read_text().split()
    }


def sessions() -> Iterator[int]:
    """The session of every process that has not ended."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        fields = read(path).rpartition(b")")[2].split()  # the name before may hold anything
        if fields and fields[0] != b"Z":
            yield int(fields[3])


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it ended
        return b""


def gone(pids: set[int]) -> bool:
    """Whether all of them end within ten seconds."""
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
