"""The engine worker, and questions that kill it: `chaos:memory`, `:exit`, `:segfault`.

Over the deterministic engine, or with `BATCHSIGHT_ENGINE=local` over the real one.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time

from pipelines.engine.fake import FakeEngine, FakeOptions
from pipelines.engine.types import Engine, EngineInfo, EngineRequest, EngineStats, Handle, OnText
from pipelines.settings import Settings
from workers.lifecycle import run_gpu_worker
from workers.wiring import load_model


class PoisonedEngine:
    """An engine; a marked question does to this process what it says. `pause`: seconds before each request."""

    def __init__(self, engine: Engine, *, pause: float = 0.0) -> None:
        self._engine = engine
        self._pause = pause

    @property
    def info(self) -> EngineInfo:
        """The engine's own."""
        return self._engine.info

    def submit(self, request: EngineRequest, *, on_text: OnText | None = None) -> Handle:
        """Queue a request, or die of it."""
        if "chaos:memory" in request.question:
            raise MemoryError
        if "chaos:exit" in request.question:
            raise SystemExit(3)
        if "chaos:segfault" in request.question:
            os.kill(os.getpid(), signal.SIGSEGV)
        time.sleep(self._pause)
        return self._engine.submit(request, on_text=on_text)

    def stats(self) -> EngineStats:
        """The engine's own."""
        return self._engine.stats()

    def healthy(self) -> bool:
        """The engine's own."""
        return self._engine.healthy()

    def close(self, *, timeout: float = 30.0) -> None:
        """Stop the engine."""
        self._engine.close(timeout=timeout)


def _load(settings: Settings) -> Engine:
    seconds = float(os.environ["CHAOS_ENGINE_SECONDS"])
    if settings.engine == "local":
        return PoisonedEngine(load_model(settings), pause=seconds)  # a small model would answer everything at once
    options = FakeOptions(model=settings.model_name, slots=settings.engine_slots, seconds=seconds)
    return PoisonedEngine(FakeEngine(options))


def main() -> int:
    """Run until told to stop."""
    role = os.environ["CHAOS_ROLE"]
    socket.gethostname = lambda: role  # workers are named after their host
    return run_gpu_worker(Settings(), load=_load)


if __name__ == "__main__":
    sys.exit(main())
