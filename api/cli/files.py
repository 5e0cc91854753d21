"""Commands about uploaded files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from api.cli import output
from api.cli.context import client_of
from api.cli.jobs import AsJson
from api.cli.progress import Transfer

app = typer.Typer(help="Uploaded files.", no_args_is_help=True)

FileId = Annotated[str, typer.Argument(metavar="FILE", help="The file's id.")]


@app.command()
def upload(
    context: typer.Context,
    paths: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="Files on this machine.")],
    *,
    purpose: Annotated[str, typer.Option(help="user_data, vision or batch.")] = "user_data",
    expires_after: Annotated[
        int | None, typer.Option(min=3_600, max=2_592_000, help="Seconds until they are deleted.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Upload files; their ids are written in order."""
    with client_of(context) as client:
        for path in paths:
            with Transfer(output.messages, f"uploading {path}") as transfer:
                file = client.files.upload(
                    path, purpose=purpose, expires_after=expires_after, on_progress=transfer.update
                )
            if as_json:
                output.write_json(file)
            else:
                output.write_text(file.id)


@app.command("list")
def list_files(
    context: typer.Context,
    *,
    purpose: Annotated[str | None, typer.Option(help="Only files of this purpose.")] = None,
    as_json: AsJson = False,
) -> None:
    """List uploaded files, newest first."""
    with client_of(context) as client:
        rows = output.table("id", "name", "bytes", "purpose", "status", "created")
        for file in client.files.list(purpose=purpose):
            if as_json:
                output.write_json(file)
                continue
            created = file.created_at.strftime("%Y-%m-%d %H:%M")
            rows.add_row(file.id, file.filename, str(file.size), file.purpose, file.status, created)
        if not as_json:
            output.data.print(rows)


@app.command()
def download(
    context: typer.Context,
    file_id: FileId,
    target: Annotated[Path, typer.Option("--output", "-o", dir_okay=False, help="Where it is written.")],
) -> None:
    """Write a file's bytes to a path."""
    with client_of(context) as client, Transfer(output.messages, f"writing {target}") as transfer:
        client.files.download(file_id, target, on_progress=transfer.update)


@app.command()
def delete(context: typer.Context, file_id: FileId) -> None:
    """Delete a file."""
    with client_of(context) as client:
        client.files.delete(file_id)
