"""Commands about uploaded files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from api.cli import output
from api.cli.context import client_of
from api.cli.jobs import AsJson

app = typer.Typer(help="Uploaded files.", no_args_is_help=True)

FileId = Annotated[str, typer.Argument(metavar="FILE", help="The file's id.")]


@app.command()
def upload(
    context: typer.Context,
    paths: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="Files on this machine.")],
    *,
    purpose: Annotated[str, typer.Option(help="user_data, vision or batch.")] = "user_data",
    as_json: AsJson = False,
) -> None:
    """Upload files; their ids are written in order."""
    with client_of(context) as client:
        for path in paths:
            file = client.files.upload(path, purpose=purpose)
            if as_json:
                output.write_json(file)
            else:
                output.write_text(file.id)


@app.command("list")
def list_files(context: typer.Context, *, as_json: AsJson = False) -> None:
    """List uploaded files, newest first."""
    with client_of(context) as client:
        rows = output.table("id", "name", "bytes", "purpose", "status", "created")
        for file in client.files.list():
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
    with client_of(context) as client:
        target.write_bytes(client.files.content(file_id))


@app.command()
def delete(context: typer.Context, file_id: FileId) -> None:
    """Delete a file."""
    with client_of(context) as client:
        client.files.delete(file_id)
