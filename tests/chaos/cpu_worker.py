"""The cpu worker with decoders that meet poison, and with a clock that can be wrong (`CHAOS_CLOCK_SKEW`, seconds)."""

from __future__ import annotations

import os
import socket
import sys
import time
from functools import partial

from pipelines.media.isolate import Decoder
from pipelines.settings import Settings
from workers.lifecycle import run_cpu_worker


def main() -> int:
    """Run until told to stop."""
    role = os.environ["CHAOS_ROLE"]
    socket.gethostname = lambda: role  # workers are named after their host
    if skew := float(os.environ.get("CHAOS_CLOCK_SKEW", "0")):
        right = time.time
        time.time = lambda: right() + skew
    settings = Settings()
    decoder = partial(Decoder, operations="tests.chaos.operations")
    return run_cpu_worker(settings, processes=settings.cpu_workers or 1, make_decoder=decoder)


if __name__ == "__main__":
    sys.exit(main())
