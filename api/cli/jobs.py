"""Commands about jobs."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from api.cli import output
from api.cli.context import client_of
from api.cli.exits import ExitCode, of_job
from api.cli.progress import JobProgress, Transfer
from api.cli.sources import source_of
from api.client import Client, ConnectionFailed, Job, WaitTimeout

JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON on stdout.")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait until the job has ended; the exit code tells how.")]
Timeout = Annotated[float | None, typer.Option("--timeout", min=0, help="Seconds to wait at most (exit code 75).")]


_TIMES = ["%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d"]


class Priority(StrEnum):
    """How urgent."""

    INTERACTIVE = "interactive"
    NORMAL = "normal"
    BULK = "bulk"


class ResultFormat(StrEnum):
    """How results are written."""

    TEXT = "text"
    JSONL = "jsonl"
    MARKDOWN = "markdown"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (submit, status, watch, results, items, cancel, redrive, jobs, kinds, usage):
        app.command()(command)


def submit(
    context: typer.Context,
    kind: Annotated[str, typer.Argument(help="What is asked: see `batchsight kinds`.")],
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE…",
            help="s3://bucket/prefix/ or a glob; or objects, URLs, local files and folders, uploaded file ids.",
        ),
    ] = None,
    *,
    param: Annotated[
        list[str] | None, typer.Option("--param", "-p", metavar="NAME=VALUE", help="A parameter; JSON, else text.")
    ] = None,
    manifest: Annotated[bool, typer.Option("--manifest", help="SOURCE is a list of media (.jsonl or .csv).")] = False,
    priority: Annotated[Priority, typer.Option(help="How urgent.")] = Priority.NORMAL,
    metadata: Annotated[
        list[str] | None, typer.Option("--metadata", "-m", metavar="NAME=VALUE", help="Yours; jobs are listed by it.")
    ] = None,
    deadline: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%dT%H:%M:%S%z"], help="Items that have not run by then fail.")
    ] = None,
    webhook: Annotated[str | None, typer.Option(help="An endpoint that is told of its end; see `webhook`.")] = None,
    idempotency_key: Annotated[str | None, typer.Option(help="Submit once, however often this is repeated.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count and estimate; run and store nothing.")] = False,
    wait: Wait = False,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Submit a job."""
    with client_of(context) as client:

        def upload(path: Path) -> str:
            if dry_run:
                raise typer.BadParameter(f"a dry run stores nothing, so {path} is not uploaded; name what is there")
            with Transfer(output.messages, f"uploading {path}") as transfer:
                return client.files.upload(path, on_progress=transfer.update).id

        source = source_of(sources or [], manifest=manifest, upload=upload)
        if dry_run:
            estimate = client.estimate(kind, source=source, parameters=pairs(param, "--param"))
            if as_json:
                output.write_json(estimate)
            else:
                output.write_text(output.estimate_summary(estimate))
            return
        job = client.submit(
            kind,
            source=source,
            parameters=pairs(param, "--param"),
            priority=priority.value,
            metadata=pairs(metadata, "--metadata"),
            deadline=deadline,
            webhook=webhook,
            idempotency_key=idempotency_key,
        )
        if wait:
            output.messages.print(f"job {job.id}", soft_wrap=True)
            _follow(client, job.id, timeout, as_json=as_json)
        elif as_json:
            output.write_json(job)
        else:
            output.write_text(job.id)


def status(context: typer.Context, job_id: JobId, *, as_json: AsJson = False) -> None:
    """Show a job as it is now."""
    with client_of(context) as client:
        _show(client.job(job_id), as_json=as_json)


def watch(context: typer.Context, job_id: JobId, *, timeout: Timeout = None, as_json: AsJson = False) -> None:
    """Follow a job until it has ended: progress, throughput, time left, failures."""
    with client_of(context) as client:
        _follow(client, job_id, timeout, as_json=as_json)


def results(
    context: typer.Context,
    job_id: JobId,
    *,
    form: Annotated[ResultFormat, typer.Option("--format", "-f", help="How they are written.")] = ResultFormat.TEXT,
    include_failed: Annotated[bool, typer.Option("--all", help="Failed items too.")] = False,
    target: Annotated[
        Path | None, typer.Option("--output", "-o", dir_okay=False, help="A file, instead of stdout.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the results there are so far."""
    chosen = ResultFormat.JSONL if as_json else form
    include = "all" if include_failed else "succeeded"
    if target is not None and chosen is not ResultFormat.TEXT:
        with client_of(context) as client, Transfer(output.messages, f"writing {target}") as transfer:
            saved: Literal["jsonl", "markdown"] = "markdown" if chosen is ResultFormat.MARKDOWN else "jsonl"
            client.save_results(job_id, target, form=saved, include=include, on_progress=transfer.update)
        return
    with client_of(context) as client, _stream(target) as stream:
        if chosen is ResultFormat.MARKDOWN:
            stream.write(client.markdown(job_id))
            return
        for result in client.results(job_id, include=include):
            if chosen is ResultFormat.JSONL:
                stream.write(json.dumps(output.plain(result), ensure_ascii=False) + "\n")
                continue
            page = f", page {result.page}" if result.page is not None else ""
            text = result.text if result.error is None else f"[{result.error.code}] {result.error.message}"
            flags = f" [{', '.join(result.flags)}]" if result.flags else ""
            stream.write(f"── {result.name}{page}{flags}\n{text}\n\n")


def items(
    context: typer.Context,
    job_id: JobId,
    *,
    state: Annotated[str | None, typer.Option(help="Only items in this state.")] = None,
    code: Annotated[str | None, typer.Option(help="Only failed items with this error code.")] = None,
    as_json: AsJson = False,
) -> None:
    """List a job's items."""
    with client_of(context) as client:
        if as_json:
            for item in client.items(job_id, state=state, code=code):
                output.write_json(item)
            return
        rows = output.table("seq", "name", "page", "state", "attempt", "tiles", "error")
        for item in client.items(job_id, state=state, code=code):
            error = f"{item.error.code}: {item.error.message}" if item.error else ""
            cells = (item.seq, item.name, item.page or "", item.state, item.attempt, item.tiles or "", error)
            rows.add_row(*(str(cell) for cell in cells))
        output.data.print(rows)


def cancel(context: typer.Context, job_id: JobId, *, as_json: AsJson = False) -> None:
    """Cancel a job; what has succeeded is kept."""
    with client_of(context) as client:
        _show(client.cancel(job_id), as_json=as_json)


def redrive(
    context: typer.Context,
    job_id: JobId,
    *,
    code: Annotated[list[str] | None, typer.Option(help="Only items that failed with this code.")] = None,
    wait: Wait = False,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Run the failed items again, as a child job."""
    with client_of(context) as client:
        job = client.redrive(job_id, codes=code or None)
        if wait:
            output.messages.print(f"job {job.id}", soft_wrap=True)
            _follow(client, job.id, timeout, as_json=as_json)
        elif as_json:
            output.write_json(job)
        else:
            output.write_text(job.id)


def jobs(
    context: typer.Context,
    *,
    state: Annotated[str | None, typer.Option(help="Only jobs in this state.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only jobs of this kind.")] = None,
    metadata: Annotated[
        list[str] | None, typer.Option("--metadata", "-m", metavar="NAME=VALUE", help="Only jobs submitted with it.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    with client_of(context) as client:
        rows = output.table("id", "kind", "state", "items", "failed", "created")
        wanted = {name: str(value) for name, value in pairs(metadata, "--metadata").items()}
        for number, job in enumerate(client.jobs(state=state, kind=kind, metadata=wanted)):
            if number == limit:
                break
            if as_json:
                output.write_json(job)
                continue
            created = job.created_at.astimezone().strftime("%Y-%m-%d %H:%M")
            cells = (job.id, job.kind, job.state, f"{job.done}/{job.total}", job.counts.get("failed", 0), created)
            rows.add_row(*(str(cell) for cell in cells))
        if not as_json:
            output.data.print(rows)


def kinds(context: typer.Context, *, as_json: AsJson = False) -> None:
    """List what can be asked, with parameters."""
    with client_of(context) as client:
        for kind in client.kinds():
            if as_json:
                output.write_json(kind)
                continue
            output.write_text(f"{kind.name}  {kind.title}  ({', '.join(kind.media)})")
            for name, schema in kind.parameters.get("properties", {}).items():
                default = f" (default {json.dumps(schema['default'])})" if "default" in schema else ""
                output.write_text(f"    {name}  {schema.get('description', '')}{default}")


def usage(
    context: typer.Context,
    *,
    since: Annotated[datetime | None, typer.Option(formats=_TIMES, help="Only jobs submitted from then on.")] = None,
    until: Annotated[datetime | None, typer.Option(formats=_TIMES, help="Only jobs submitted before.")] = None,
    as_json: AsJson = False,
) -> None:
    """Add up what was spent."""
    with client_of(context) as client:
        report = client.usage(created_after=since, created_before=until)
    if as_json:
        output.write_json(report)
        return
    spent = report.spent
    rows = {
        "jobs": f"{report.jobs}",
        "tokens": f"{spent.prompt_tokens} + {spent.completion_tokens} ({spent.cached_tokens} from the cache)",
        "tiles": f"{spent.tiles}",
        "device": f"{spent.device_seconds:.1f} s" + (f", cost {spent.cost:g}" if spent.cost else ""),
        "waiting": f"{report.active_items} items wait or run",
        "stored": f"{report.stored_bytes} bytes of files",
    }
    for name, value in rows.items():
        output.write_text(f"{name:<9} {value}")


def _follow(client: Client, job_id: str, timeout: float | None, *, as_json: bool) -> None:
    try:
        with JobProgress(output.messages) as progress:
            job = client.wait(job_id, timeout=timeout, on_update=progress.update)
    except KeyboardInterrupt:
        _say_how_to_resume(job_id)
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    except (WaitTimeout, ConnectionFailed):
        _say_how_to_resume(job_id)
        raise
    _show(job, as_json=as_json)
    raise typer.Exit(of_job(job.state))


def _say_how_to_resume(job_id: str) -> None:
    output.messages.print(f"the job goes on; follow it again with: batchsight watch {job_id}", soft_wrap=True)


def _show(job: Job, *, as_json: bool) -> None:
    if as_json:
        output.write_json(job)
    else:
        output.write_text(output.job_summary(job))


def _stream(target: Path | None) -> Any:
    return nullcontext(sys.stdout) if target is None else target.open("w", encoding="utf-8")


def pairs(words: list[str] | None, option: str) -> dict[str, Any]:
    """NAME=VALUE words as an object; a dot in a name leads into one. Raises `typer.BadParameter`."""
    found: dict[str, Any] = {}
    for word in words or []:
        name, separator, value = word.partition("=")
        if not separator or not name:
            raise typer.BadParameter(f"{option} takes NAME=VALUE, not {word!r}")
        place = found
        *outer, last = name.split(".")
        for part in outer:
            place = place.setdefault(part, {})
        place[last] = _value(value)
    return found


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
