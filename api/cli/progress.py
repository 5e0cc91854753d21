"""Live progress of a job on stderr: bar, throughput, time left, failures. Off a terminal: a line at each change."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

from api.cli.output import duration, job_line
from api.client import Job

_LINE_SECONDS = 10.0


def animated(console: Console) -> bool:
    """Only a real terminal that can move its cursor is drawn on, whatever FORCE_COLOR says."""
    return console.is_terminal and console.file.isatty() and not console.is_dumb_terminal


class Transfer:
    """Bytes on their way, for one file; a context manager. Off a terminal: one line at the start."""

    def __init__(self, console: Console, what: str) -> None:
        self._console = console
        self._what = what
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), console=console
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Transfer:
        if animated(self._console):
            self._bar.start()
            self._task = self._bar.add_task(self._what, total=None)
        else:
            self._console.print(self._what, soft_wrap=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._bar.stop()

    def update(self, done: int, total: int | None) -> None:
        """So many bytes, of so many."""
        if self._task is not None:
            self._bar.update(self._task, completed=done, total=total)


class JobProgress:
    """Feed it with every version of the job; a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = animated(console)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[rest]}"),
            console=console,
            transient=False,
        )
        self._task: TaskID | None = None
        self._began = time.monotonic()
        self._first_done: int | None = None
        self._last_line = ("", 0.0)

    def __enter__(self) -> JobProgress:
        if self._live:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._bar.stop()

    def update(self, job: Job) -> None:
        """Show this version."""
        if self._first_done is None:
            self._first_done, self._began = job.done, time.monotonic()
        if self._live:
            self._draw(job)
        else:
            self._print(job)

    def _draw(self, job: Job) -> None:
        total = job.total or None
        rest = self._rest(job)
        if self._task is None:
            self._task = self._bar.add_task(job.state, total=total, completed=job.done, rest=rest)
        self._bar.update(self._task, description=f"{job.kind} {job.state}", total=total, completed=job.done, rest=rest)

    def _print(self, job: Job) -> None:
        state, said = self._last_line
        now = time.monotonic()
        if job.state != state or now - said >= _LINE_SECONDS:
            self._last_line = (job.state, now)
            self._console.print(job_line(job), soft_wrap=True)

    def _rest(self, job: Job) -> str:
        parts = []
        elapsed = time.monotonic() - self._began
        fresh = job.done - (self._first_done or 0)
        if fresh and elapsed > 1:
            parts.append(f"{fresh / elapsed:.1f}/s")
        if job.eta_seconds is not None:
            parts.append(f"{duration(job.eta_seconds)} left")
        if job.queue_position:
            parts.append(f"{job.queue_position} jobs ahead")
        parts.extend(f"{count} {code}" for code, count in sorted(job.errors.items()))
        return "  ".join(parts)
