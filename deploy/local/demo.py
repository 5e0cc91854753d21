"""`make demo`: the whole path on a mixed load, from nothing, in a minute.

Scans, documents and one corrupt file from S3 by prefix; pictures and one missing object from a manifest; clips with
questions from uploads. Every item must end, and only the two bad ones may fail.
"""

from __future__ import annotations

import json
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from api.client import Client, Job, Result
from deploy.demo.samples import Sample, write_samples
from deploy.demo.scoring import character_error_rate
from deploy.local.stack import SAMPLES_BUCKET, Addresses, Stack, StackOptions

SEED = 2026
MISSING = "photos/no-such-picture.png"
_SHOWN = 60
_PLAIN_WIDTH = 180
_POLL = 0.25


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """What one item must give."""

    text: str | None = None
    error: str | None = None


Wanted = dict[tuple[str, int | None], Expectation]
"""By name and 1-based page (None where the item is the whole file)."""


def run_demo(folder: Path | None) -> int:
    """Run the demo; 0 where every item ended as it should."""
    console = Console(stderr=True)
    with _terminates_as_interrupt():
        data = (folder or Path(tempfile.mkdtemp(prefix="batchsight-demo-"))).resolve()
        console.print(f"data folder: {data}", soft_wrap=True, highlight=False)
        began = time.monotonic()
        stack = Stack(data, StackOptions(samples=True), say=lambda text: console.print(f"· {text}", highlight=False))
        try:
            addresses = stack.start()
            console.print(f"· ready after {time.monotonic() - began:.1f} s", highlight=False)
            return _run(stack, addresses, console)
        finally:
            console.print("· stopping everything", highlight=False)
            stack.stop()


def _run(stack: Stack, addresses: Addresses, console: Console) -> int:
    samples = write_samples(stack.folder / "samples", SEED)
    wanted = _expectations(samples)
    if not addresses.trained:
        console.print("the bundled model's weights are random: its answers mean nothing", style="yellow")
    with Client(addresses.api_url, api_key=addresses.api_key) as client:
        began = time.monotonic()
        jobs = _submit(stack, client, samples)
        jobs = _watch(client, jobs, console)
        seconds = time.monotonic() - began
        results = [result for job in jobs for result in client.results(job.id, include="all")]
    out = Console()
    return _report(results, jobs, wanted, seconds, out if out.is_terminal else Console(width=_PLAIN_WIDTH))


def _submit(stack: Stack, client: Client, samples: tuple[Sample, ...]) -> list[Job]:
    """Three ways in: a prefix, a manifest, uploads."""
    s3 = stack.s3()
    if stack.objects is None and not any(b["Name"] == SAMPLES_BUCKET for b in s3.list_buckets()["Buckets"]):
        s3.create_bucket(Bucket=SAMPLES_BUCKET)
    by_kind: dict[str, list[Sample]] = {}
    for sample in samples:
        by_kind.setdefault(sample.kind, []).append(sample)
    for sample in by_kind["ocr"]:
        s3.upload_file(str(sample.path), SAMPLES_BUCKET, f"scans/{sample.path.name}")
    lines = []
    for sample in by_kind["caption"]:
        s3.upload_file(str(sample.path), SAMPLES_BUCKET, f"photos/{sample.path.name}")
        lines.append({"url": f"s3://{SAMPLES_BUCKET}/photos/{sample.path.name}", "id": sample.path.name})
    lines.append({"url": f"s3://{SAMPLES_BUCKET}/{MISSING}", "id": MISSING})
    manifest = "\n".join(json.dumps(line) for line in lines)
    jobs = [
        client.submit("ocr", source={"type": "prefix", "url": f"s3://{SAMPLES_BUCKET}/scans/"}),
        client.submit("caption", source={"type": "manifest", "format": "jsonl", "inline": manifest}),
    ]
    clips = []
    for sample in by_kind["video_qa"]:
        file = client.files.upload(sample.path)
        clips.append({"file_id": file.id, "id": sample.path.name, "parameters": sample.parameters})
    first = by_kind["video_qa"][0].parameters
    jobs.append(client.submit("video_qa", source={"type": "media", "media": clips}, parameters=first))
    return jobs


def _watch(client: Client, jobs: list[Job], console: Console) -> list[Job]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bars = {job.id: progress.add_task(job.kind, total=None) for job in jobs}
        current = {job.id: job for job in jobs}
        while not all(job.finished for job in current.values()):
            for job_id, job in current.items():
                if job.finished:
                    continue
                now = current[job_id] = client.job(job_id)
                progress.update(bars[job_id], completed=now.done, total=now.total if now.planned else None)
                if now.finished and not console.is_terminal:
                    console.print(f"{now.kind}: {now.state}, {now.done} items", highlight=False)
            time.sleep(_POLL)
    return list(current.values())


def _expectations(samples: tuple[Sample, ...]) -> Wanted:
    wanted: Wanted = {(PurePosixPath(MISSING).name, None): Expectation(error="media_not_found")}
    for sample in samples:
        name = sample.path.name
        if sample.error is not None:
            wanted[(name, None)] = Expectation(error=sample.error)
        elif sample.path.suffix in {".pdf", ".tiff"}:
            for page, text in enumerate(sample.expected, 1):
                wanted[(name, page)] = Expectation(text=text)
        else:
            wanted[(name, None)] = Expectation(text=sample.expected[0])
    return wanted


def _report(results: list[Result], jobs: list[Job], wanted: Wanted, seconds: float, console: Console) -> int:
    table = Table("item", "expected", "answer", "error rate")
    failed = Table("failed item", "code", "what to do")
    left = dict(wanted)
    wrong: list[str] = []
    for result in sorted(results, key=lambda each: (each.name, each.page or 0)):
        name = PurePosixPath(result.name).name
        shown = f"{name} p.{result.page}" if result.page else name
        expectation = left.pop((name, result.page), None)
        if result.error is not None:
            failed.add_row(Text(shown), result.error.code, Text(result.error.message))
            if expectation is None or expectation.error != result.error.code:
                wrong.append(f"{shown} failed with {result.error.code}")
        elif expectation is None or expectation.text is None:
            wrong.append(f"{shown} was not expected to succeed")
        else:
            rate = character_error_rate(result.text, expectation.text)
            table.add_row(Text(shown), _short(expectation.text), _short(result.text), f"{rate:.3f}")
    wrong += [f"{name} p.{page} has no result" for name, page in left]
    console.print(table)
    console.print(failed)
    tokens = sum(job.usage.completion_tokens for job in jobs)
    tiles = sum(job.usage.tiles for job in jobs)
    console.print(
        f"{len(results)} items in {seconds:.1f} s: {len(results) / seconds:.1f} items/s, "
        f"{tiles / seconds:.1f} tiles/s, {tokens / seconds:.0f} tokens/s",
        highlight=False,
    )
    for line in wrong:
        console.print(f"not as expected: {line}", style="red")
    return 1 if wrong else 0


def _short(text: str) -> Text:
    """A line of it. Text, not markup, and only what prints: a model's answer is data."""
    flat = " / ".join(text.splitlines())
    plain = "".join(character if character.isprintable() else "�" for character in flat)
    return Text(plain if len(plain) <= _SHOWN else f"{plain[: _SHOWN - 1]}…")


@contextmanager
def _terminates_as_interrupt() -> Iterator[None]:
    """SIGTERM stops everything just as Ctrl-C does."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
