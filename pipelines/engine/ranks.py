"""Starts and watches the other ranks of a tensor-parallel engine: exec'd processes, so that nothing is inherited."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from pipelines.engine.options import EngineOptions


class Ranks:
    """The processes of ranks 1 to world - 1. `on_death` is called once, from a thread, when one ends unasked."""

    def __init__(self, folder: Path, options: EngineOptions, *, world: int, cuda: bool) -> None:
        self._scratch = Path(tempfile.mkdtemp(prefix="batchsight-ranks-"))
        self.rendezvous = f"file://{self._scratch / 'rendezvous'}"
        self._closing = threading.Event()
        self._children = []
        for rank in range(1, world):
            job = {
                "folder": str(folder.resolve()),
                "options": asdict(options),
                "rank": rank,
                "world": world,
                "rendezvous": self.rendezvous,
                "cuda": cuda,
            }
            command = [sys.executable, "-m", "pipelines.engine.rank", json.dumps(job)]
            root = Path(__file__).resolve().parents[2]
            self._children.append(subprocess.Popen(command, cwd=root))  # noqa: S603 - our own module
        self._watchers: list[threading.Thread] = []

    def watch(self, on_death: Callable[[str], None]) -> None:
        """Report the first rank that ends before `close`."""
        for rank, child in enumerate(self._children, start=1):
            watcher = threading.Thread(
                target=self._wait, args=(rank, child, on_death), name=f"rank-{rank}", daemon=True
            )
            watcher.start()
            self._watchers.append(watcher)

    def _wait(self, rank: int, child: subprocess.Popen[bytes], on_death: Callable[[str], None]) -> None:
        status = child.wait()
        if not self._closing.is_set():
            on_death(f"rank {rank} ended with status {status}")

    @property
    def process_ids(self) -> list[int]:
        """Of the ranks, in order."""
        return [child.pid for child in self._children]

    def close(self, *, timeout: float = 10.0) -> None:
        """Wait for the ranks to end, and kill those that do not."""
        self._closing.set()
        for child in self._children:
            try:
                child.wait(timeout)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        for watcher in self._watchers:
            watcher.join(timeout)
        shutil.rmtree(self._scratch, ignore_errors=True)
