"""Commands about checkpoints. They load torch, and only they do: the imports stand inside."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from api.cli import output
from api.cli.jobs import AsJson

app = typer.Typer(help="Checkpoints.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(exists=True, file_okay=False, help="A checkpoint, original or native layout.")]


@app.command()
def check(
    folder: Folder,
    *,
    against: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Recorded reference answers (safetensors).")
    ] = None,
    device: Annotated[str, typer.Option(help="Where it is loaded.")] = "cpu",
    as_json: AsJson = False,
) -> None:
    """Load a checkpoint and say what it is; compare its answers where a reference is given."""
    from pipelines.engine.check import check_checkpoint  # noqa: PLC0415 - torch takes seconds

    report = check_checkpoint(folder, against=against, device=device).as_dict()
    if as_json:
        output.write_json(report)
        return
    for name, value in report.items():
        output.write_text(f"{name.replace('_', ' '):<18} {value}")


@app.command()
def convert(folder: Folder, target: Annotated[Path, typer.Argument(help="A new or empty folder.")]) -> None:
    """Rewrite a checkpoint in transformers' native layout."""
    from pipelines.engine.convert import convert_checkpoint  # noqa: PLC0415 - as above

    for name in convert_checkpoint(folder, target):
        output.write_text(name)
