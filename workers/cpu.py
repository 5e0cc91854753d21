"""`python -m workers.cpu`: the cpu worker, Celery's prefork pool over planning, paging and preparing."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from pipelines.settings import Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, then run the worker."""
    parser = argparse.ArgumentParser(prog="python -m workers.cpu", description="Batchsight's cpu worker")
    parser.add_argument("--check", action="store_true", help="print the settings in force, then exit")
    options = parser.parse_args(arguments)
    settings = Settings()
    processes = settings.cpu_workers or os.cpu_count() or 1
    if options.check:
        print(json.dumps({"processes": processes, "scratch": str(settings.scratch_dir), "blobs": settings.blob_url}))
        return 0
    from workers.lifecycle import run_cpu_worker  # noqa: PLC0415 - not needed for --check

    return run_cpu_worker(settings, processes=processes)


if __name__ == "__main__":
    sys.exit(main())
