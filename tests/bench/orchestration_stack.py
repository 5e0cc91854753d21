"""What the orchestration benches share: a stack with the deterministic engine and tiny pictures, and a table."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.table import Table

from deploy.local.stack import SAMPLES_BUCKET, Stack, StackOptions

Figures = Mapping[str, Any]


def engine_stack(
    folder: Path,
    *,
    slots: int = 64,
    processes: int = 2,
    workers: int = 1,
    planners: int = 1,
    environment: Mapping[str, str] | None = None,
) -> Stack:
    """Servers, api, one dispatcher, `planners` cpu workers, `workers` engine workers that answer at once."""
    settings = {
        "BATCHSIGHT_ENGINE": "fake",
        "BATCHSIGHT_DISPATCH_WINDOW": "256",
        "BATCHSIGHT_RATE_LIMIT_PER_MINUTE": "1000000",
        "BATCHSIGHT_MAX_BODY_BYTES": str(64 * 1024 * 1024),
    }
    options = StackOptions(
        engine_slots=slots,
        engine_workers=workers,
        cpu_workers=planners,
        cpu_processes=processes,
        environment={**settings, **(environment or {})},
    )
    return Stack(folder, options, say=lambda _: None)


def write_pictures(stack: Stack, folder: str, count: int, *, first: int = 0) -> str:
    """Distinct pictures of 8×8 pixels in the bucket of samples; their prefix. `first`: the number of the first one."""
    where = stack.folder / "s3" / "buckets" / SAMPLES_BUCKET / folder
    where.mkdir(parents=True)
    for number in range(first, first + count):
        out = BytesIO()
        Image.new("RGB", (8, 8), (number >> 16, number >> 8 & 255, number & 255)).save(out, "PNG")
        where.joinpath(f"{number:07d}.png").write_bytes(out.getvalue())
    return f"s3://{SAMPLES_BUCKET}/{folder}/"


def peaks(stack: Stack) -> dict[str, float]:
    """Peak resident memory in MiB of the api, and of the largest child that the cpu worker has now."""
    assert stack.supervisor is not None
    pids = {role: stack.supervisor.pid(role) for role in ("api", "cpu")}
    children = Path(f"/proc/{pids['cpu']}/task/{pids['cpu']}/children").read_text(encoding="ascii").split()
    return {"api": _peak(pids["api"]), "cpu": max((_peak(int(child)) for child in children), default=0.0)}


def _peak(pid: int) -> float:
    """0 for a process that is ending: it has no memory any more, or is gone by the time it is read."""
    with suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
        return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0.0)
    return 0.0


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Median and 99th percentile, in milliseconds, of seconds."""
    ordered = sorted(values)
    return {
        "p50_ms": round(1000 * statistics.median(ordered), 2),
        "p99_ms": round(1000 * ordered[int(0.99 * (len(ordered) - 1))], 2),
    }


def bench(title: str, measure: Callable[[Path, argparse.Namespace], Figures], **defaults: int) -> None:
    """A bench's command line: `--json PATH` and a number for each of `defaults`."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--json", type=Path)
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="batchsight-bench-") as folder:
        figures = {"machine": platform.processor() or platform.machine(), **measure(Path(folder), chosen)}
    table = Table("figure", "value", title=title)
    for name, value in figures.items():
        table.add_row(name, str(value))
    Console().print(table)
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(figures, indent=2))
