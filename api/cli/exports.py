"""Commands about exports."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from api.cli import output
from api.cli.context import client_of
from api.cli.exits import ExitCode
from api.cli.jobs import AsJson, JobId, Timeout
from api.client import Client, Export
from pipelines.jobs.exports import Compression, ExportFormat, FileContent

_OWN = "the installation's own store"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(export)
    app.command()(exports)


def export(
    context: typer.Context,
    job_id: JobId,
    url: Annotated[
        str | None, typer.Argument(metavar="URL", help="s3://bucket/prefix/; left out: the installation's own store.")
    ] = None,
    *,
    form: Annotated[ExportFormat, typer.Option("--format", "-f", help="How they are written.")] = ExportFormat.JSONL,
    compression: Annotated[Compression | None, typer.Option(help="Of jsonl and parquet.")] = None,
    content: Annotated[FileContent | None, typer.Option(help="What each file holds, with --format files.")] = None,
    shard_rows: Annotated[int | None, typer.Option(min=100, help="Results a shard, at most.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it has ended; the exit code tells how.")] = False,
    download: Annotated[
        Path | None, typer.Option("--output", "-o", file_okay=False, help="Wait, then write it below this folder.")
    ] = None,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Export a job's results as objects: shards, and a manifest that is written last."""
    if download is not None and url is not None:
        raise typer.BadParameter("--output goes with the installation's own store; leave the URL out")
    options: dict[str, Any] = {"format": form.value}
    if compression is not None:
        options["compression"] = compression.value
    if content is not None:
        options["content"] = content.value
    if shard_rows is not None:
        options["shard_rows"] = shard_rows
    with client_of(context) as client:
        made = client.exports.create(job_id, url, **options)
        if not wait and download is None:
            _show(made, as_json=as_json)
            return
        output.messages.print(f"export {made.id}", soft_wrap=True)
        ended = client.exports.wait(job_id, made.id, timeout=timeout)
        if ended.state == "succeeded" and download is not None:
            _download(client, ended, download)
        _show(ended, as_json=as_json)
    raise typer.Exit(ExitCode.OK if ended.state == "succeeded" else ExitCode.JOB_FAILED)


def exports(context: typer.Context, job_id: JobId, *, as_json: AsJson = False) -> None:
    """List a job's exports, newest first."""
    with client_of(context) as client:
        rows = output.table("id", "state", "format", "items", "shards", "bytes", "where")
        for found in client.exports.list(job_id):
            if as_json:
                output.write_json(found)
                continue
            done = f"{found.rows + found.errors}/{found.total}"
            cells = (found.id, found.state, found.format, done, found.shards, found.bytes, found.url or _OWN)
            rows.add_row(*(str(cell) for cell in cells))
        if not as_json:
            output.data.print(rows)


def _download(client: Client, export: Export, folder: Path) -> None:
    """Shards first, the manifest last, as they were written."""
    manifest = client.exports.content(export.job_id, export.id)
    folder.mkdir(parents=True, exist_ok=True)
    for name in _names_in(client, export, manifest):
        # Names are the server's own, made safe there; a folder above is refused here all the same.
        target = (folder / name).resolve()
        if not target.is_relative_to(folder.resolve()):
            raise typer.BadParameter(f"the export names {name!r}, which lies outside of {folder}")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(client.exports.content(export.job_id, export.id, name))
    (folder / "manifest.json").write_bytes(manifest)


def _names_in(client: Client, export: Export, manifest: bytes) -> Iterator[str]:
    for shard in json.loads(manifest)["shards"]:
        yield shard["name"]
        if shard["content"] == "files":
            index = client.exports.content(export.job_id, export.id, shard["name"])
            yield from (json.loads(line)["name"] for line in index.splitlines())


def _show(export: Export, *, as_json: bool) -> None:
    if as_json:
        output.write_json(export)
        return
    lines = [
        f"export    {export.id}",
        f"state     {export.state}",
        f"items     {export.rows + export.errors} of {export.total} written, {export.errors} of them errors",
        f"shards    {export.shards}, {export.bytes} bytes",
        f"where     {export.url or _OWN}",
    ]
    if export.error is not None:
        lines.append(f"error     {export.error.code}: {export.error.message}")
    output.write_text("\n".join(lines))
