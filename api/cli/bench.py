"""`batchsight bench`: what this installation does for a client, measured from outside over its own api.

Two loads, one after the other: chats that stream (how long until the first text, until the whole answer), and one job
over pages drawn here (how many a second). It asserts nothing, and it costs what such work costs.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import httpx2
import typer

from api.cli import output
from api.cli.context import client_of, target_of
from api.cli.exits import ExitCode
from api.cli.jobs import AsJson
from api.cli.progress import JobProgress
from api.client import BatchsightError, Client, ConnectionFailed
from api.client.errors import error_of
from api.client.server_events import EventReader

_TIMEOUT = 600.0
_WORDS = ("invoice", "total", "date", "name", "amount", "street", "number", "order", "item", "price", "paid", "sum")


@dataclass(frozen=True, kw_only=True)
class Chatted:
    """Times in seconds from sending one chat; `first_text` is NaN where no text came. `failed`: the error's code."""

    first_text: float = math.nan
    whole: float = math.nan
    tokens: int = 0
    completion_id: str = ""
    failed: str | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was measured. Times in seconds; percentiles by nearest rank."""

    chats: int = 0
    chats_failed: int = 0
    first_text: dict[str, float] = field(default_factory=dict)
    whole_answer: dict[str, float] = field(default_factory=dict)
    tokens_a_second: float | None = None
    pages: int = 0
    pages_failed: int = 0
    pages_a_second: float | None = None


def bench(
    context: typer.Context,
    *,
    chats: Annotated[int, typer.Option(min=0, help="Chats to send; 0: none.")] = 20,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Chats at once.")] = 1,
    pages: Annotated[int, typer.Option(min=0, max=10_000, help="Pages of the job; 0: no job.")] = 50,
    max_tokens: Annotated[int, typer.Option(min=1, max=16_384, help="Longest answer.")] = 64,
    as_json: AsJson = False,
) -> None:
    """Measure this installation from outside: chat latency, and pages a second."""
    with client_of(context) as client:
        seen = _chat_load(context, chats, concurrency, max_tokens) if chats else ([], 0.0)
        done = _page_load(client, pages, max_tokens) if pages else (0, 0, 0.0)
    report = _report(seen, done)
    if as_json:
        output.write_json({name: value for name, value in asdict(report).items() if value not in (None, {})})
    else:
        _show(report)
    if report.chats_failed or report.pages_failed:
        raise typer.Exit(ExitCode.PARTIAL)


def percentile(values: Sequence[float], share: float) -> float:
    """By nearest rank; `values` in any order, at least one."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _chat_load(context: typer.Context, chats: int, concurrency: int, max_tokens: int) -> tuple[list[Chatted], float]:
    target = target_of(context)
    headers = {"authorization": f"Bearer {target.api_key}"}
    base = target.url.rstrip("/").removesuffix("/v1")
    output.messages.print(f"{chats} chats, {concurrency} at once", soft_wrap=True)
    with (
        httpx2.Client(base_url=base, headers=headers, timeout=_TIMEOUT) as http,
        ThreadPoolExecutor(concurrency) as pool,
    ):
        answer = http.get("/v1/models")
        if answer.is_error:
            raise error_of(answer.status_code, dict(answer.headers), answer.content)
        model = answer.json()["data"][0]["id"]
        began = time.perf_counter()
        seen = list(pool.map(lambda number: _chat(http, model, number, max_tokens), range(chats)))
        return seen, time.perf_counter() - began


def _chat(http: httpx2.Client, model: str, number: int, max_tokens: int) -> Chatted:
    question = {"role": "user", "content": f"Say something about the number {number}."}
    return stream_chat(http, {"model": model, "messages": [question], "max_tokens": max_tokens})


def stream_chat(http: httpx2.Client, body: Mapping[str, Any]) -> Chatted:
    """Send one chat and read its stream to the end. Raises `ConnectionFailed`."""
    reader = EventReader()
    first, tokens, completion_id = math.nan, 0, ""
    began = time.perf_counter()
    try:
        asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
        with http.stream("POST", "/v1/chat/completions", json=asked) as answer:
            if answer.is_error:
                return Chatted(failed=error_of(answer.status_code, {}, answer.read()).code)
            for chunk in answer.iter_bytes():
                for event in reader.feed(chunk):
                    if event.data == "[DONE]":
                        whole = time.perf_counter() - began
                        return Chatted(first_text=first, whole=whole, tokens=tokens, completion_id=completion_id)
                    value = json.loads(event.data)
                    if "error" in value:
                        return Chatted(failed=str(value["error"]["code"]))
                    completion_id = value["id"]
                    if math.isnan(first) and any(choice["delta"].get("content") for choice in value["choices"]):
                        first = time.perf_counter() - began
                    if value.get("usage"):
                        tokens = int(value["usage"]["completion_tokens"])
    except httpx2.TransportError as error:
        raise ConnectionFailed(f"no answer from {http.base_url}: {error}") from error
    return Chatted(failed="stream_ended")


def _page_load(client: Client, pages: int, max_tokens: int) -> tuple[int, int, float]:
    """Succeeded, failed, seconds from the submission to the end."""
    output.messages.print(f"drawing and uploading {pages} pages", soft_wrap=True)
    files = [
        client.files.upload(_page(number), filename=f"bench-{number}.png", expires_after=3_600).id
        for number in range(pages)
    ]
    began = time.perf_counter()
    job = client.submit(
        "ocr",
        source={"type": "files", "file_ids": files},
        parameters={"generation": {"max_new_tokens": max_tokens}},
        metadata={"batchsight": "bench"},
    )
    try:
        with JobProgress(output.messages) as progress:
            job = client.wait(job.id, timeout=_TIMEOUT, on_update=progress.update)
        seconds = time.perf_counter() - began
    finally:
        with contextlib.suppress(BatchsightError):
            if not job.finished:
                client.cancel(job.id)
            for file_id in files:
                client.files.delete(file_id)
    succeeded = job.counts.get("succeeded", 0)
    return succeeded, job.total - succeeded, seconds


def _page(number: int) -> bytes:
    """A page of words that no other page has: nothing is found cut already."""
    from PIL import Image, ImageDraw  # noqa: PLC0415 - no other command draws

    chosen = random.Random(f"{time.time_ns()}/{number}")
    page = Image.new("L", (900, 1_200), 255)
    draw = ImageDraw.Draw(page)
    for line in range(20):
        words = " ".join(chosen.choice(_WORDS) for _ in range(6))
        draw.text((60, 60 + 50 * line), f"{chosen.randrange(10**6)} {words}", fill=0)
    out = io.BytesIO()
    page.save(out, "PNG")
    return out.getvalue()


def _report(seen: tuple[list[Chatted], float], done: tuple[int, int, float]) -> Report:
    chatted, seconds = seen
    good = [chat for chat in chatted if chat.failed is None]
    firsts = [chat.first_text for chat in good if not math.isnan(chat.first_text)]
    succeeded, failed, job_seconds = done
    return Report(
        chats=len(good),
        chats_failed=len(chatted) - len(good),
        first_text=_percentiles(firsts),
        whole_answer=_percentiles([chat.whole for chat in good]),
        tokens_a_second=round(sum(chat.tokens for chat in good) / seconds, 2) if good else None,
        pages=succeeded,
        pages_failed=failed,
        pages_a_second=round(succeeded / job_seconds, 3) if succeeded else None,
    )


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    return {name: round(percentile(values, share), 4) for name, share in (("p50", 0.5), ("p99", 0.99))}


def _show(report: Report) -> None:
    rows = output.table("measured", "p50", "p99", "rate", "failed")
    if report.chats or report.chats_failed:
        first, whole, rate = report.first_text, report.whole_answer, report.tokens_a_second
        failed = str(report.chats_failed)
        rows.add_row("first text of a chat", _seconds(first, "p50"), _seconds(first, "p99"), "", failed)
        tokens = "" if rate is None else f"{rate:g} tokens/s"
        rows.add_row("whole answer", _seconds(whole, "p50"), _seconds(whole, "p99"), tokens, failed)
    if report.pages or report.pages_failed:
        pages = "" if report.pages_a_second is None else f"{report.pages_a_second:g} pages/s"
        rows.add_row(f"{report.pages} pages of a job", "", "", pages, str(report.pages_failed))
    output.data.print(rows)


def _seconds(values: dict[str, float], name: str) -> str:
    return f"{values[name] * 1_000:.0f} ms" if name in values else ""
