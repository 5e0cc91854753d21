"""What is written where: data on stdout, progress and messages on stderr; plain text off a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from api.client import Estimate, Job
from api.client.estimating import Range

data = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
messages = Console(stderr=True, highlight=False, markup=False, emoji=False)

_LONGEST_CELL = 60


def write_json(value: Any) -> None:
    """One JSON document, or one line of several."""
    sys.stdout.write(json.dumps(plain(value), ensure_ascii=False) + "\n")


def plain(value: Any) -> Any:
    """Frozen values as plain JSON ones."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return value


def write_text(text: str) -> None:
    """Text as it is: never markup, whatever a model wrote."""
    sys.stdout.write(text if text.endswith("\n") else f"{text}\n")


def table(*columns: str) -> Table:
    """A table that reads well in a terminal and in a pipe."""
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        made.add_column(column, overflow="fold" if column == "text" else "ellipsis")
    return made


def shortened(text: str | None) -> str:
    """The beginning of a text, on one line."""
    line = " ".join((text or "").split())
    return line if len(line) <= _LONGEST_CELL else f"{line[: _LONGEST_CELL - 1]}…"


def job_line(job: Job) -> str:
    """A job in one line."""
    failed = job.counts.get("failed", 0)
    parts = [job.id, job.kind, job.state, f"{job.done}/{job.total if job.planned or job.total else '?'}"]
    if failed:
        parts.append(f"{failed} failed")
    if job.eta_seconds is not None:
        parts.append(f"about {duration(job.eta_seconds)} left")
    return "  ".join(parts)


def job_summary(job: Job) -> str:
    """A job over several lines."""
    lines = [
        f"job       {job.id}",
        f"kind      {job.kind}",
        f"state     {job.state}",
        f"items     {job.done} of {job.total} ended: "
        + ", ".join(f"{count} {state}" for state, count in job.counts.items() if count),
    ]
    if job.queue_position is not None:
        lines.append(f"ahead     {job.queue_position} unfinished jobs")
    if job.eta_seconds is not None:
        lines.append(f"left      about {duration(job.eta_seconds)}")
    if job.errors:
        lines.append("failures  " + ", ".join(f"{count} {code}" for code, count in sorted(job.errors.items())))
    if job.error:
        lines.append(f"error     {job.error.code}: {job.error.message}")
    if job.parent_id:
        lines.append(f"redrives  {job.parent_id}")
    usage = job.usage
    if usage.completion_tokens:
        lines.append(
            f"usage     {usage.prompt_tokens} + {usage.completion_tokens} tokens, {usage.tiles} tiles, "
            f"{usage.device_seconds:.1f} device seconds" + (f", cost {usage.cost:g}" if usage.cost else "")
        )
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Such as 4 s, 3 min, 2.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5_400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3_600:.1f} h"


def estimate_summary(estimate: Estimate) -> str:
    """A dry run over several lines."""
    part = "" if estimate.complete else " (of the part that was listed)"
    basis = estimate.basis
    lately = {"tenant": "your own results", "installation": "everybody's results", "limits": "the parameters alone"}
    time = "unknown" if estimate.seconds is None else duration(estimate.seconds)
    lines = [
        f"documents {estimate.documents}{part}, {estimate.documents_to_page} of them with pages to count",
        f"left out  {estimate.unusable} unusable, {estimate.skipped} not read by {estimate.kind}",
        f"items     {_ranged(estimate.items)}",
        f"tiles     {_ranged(estimate.tiles)}",
        f"tokens    {_ranged(estimate.prompt_tokens)} in, {_ranged(estimate.completion_tokens)} out",
        f"time      {time} on {basis['engines']} engines",
        f"basis     {lately[basis['of']]} ({basis['results']})",
    ]
    if estimate.cost:
        lines.append(f"cost      {estimate.cost:g}")
    return "\n".join(lines)


def _ranged(value: Range) -> str:
    return f"about {value.expected}" + ("" if value.most is None else f", at most {value.most}")
