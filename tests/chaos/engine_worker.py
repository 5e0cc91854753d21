"""The engine worker over the deterministic engine, and questions that kill: `chaos:memory`, `:exit`, `:segfault`."""

from __future__ import annotations

import os
import signal
import sys

from pipelines.engine.fake import FakeEngine, FakeOptions
from pipelines.engine.types import Engine, EngineRequest, Handle, OnText
from pipelines.settings import Settings
from workers.lifecycle import run_gpu_worker


class PoisonedEngine(FakeEngine):
    """The fake engine; a marked question does to this process what it says."""

    def submit(self, request: EngineRequest, *, on_text: OnText | None = None) -> Handle:
        """Queue a request, or die of it."""
        if "chaos:memory" in request.question:
            raise MemoryError
        if "chaos:exit" in request.question:
            raise SystemExit(3)
        if "chaos:segfault" in request.question:
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().submit(request, on_text=on_text)


def _load(settings: Settings) -> Engine:
    seconds = float(os.environ["CHAOS_ENGINE_SECONDS"])
    return PoisonedEngine(FakeOptions(model=settings.model_name, slots=settings.engine_slots, seconds=seconds))


def main() -> int:
    """Run until told to stop."""
    return run_gpu_worker(Settings(), load=_load)


if __name__ == "__main__":
    sys.exit(main())
