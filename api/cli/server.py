"""Commands that run things: the api, the workers, the whole stack on this machine."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer


class Role(StrEnum):
    """What a worker process does."""

    CPU = "cpu"
    GPU = "gpu"
    DISPATCHER = "dispatcher"


_FOLDER = Path(".batchsight")
Folder = Annotated[Path, typer.Option(help="Where its data lies.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (serve, up, down, demo):
        app.command()(command)
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(worker)


def serve(
    *,
    host: Annotated[str | None, typer.Option(help="Listen address.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65_535, help="Listen port.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Print what would be served, then exit.")] = False,
) -> None:
    """Serve the api (as `python -m api`)."""
    from api.__main__ import main  # noqa: PLC0415 - the server is not needed by other commands

    arguments = [] if host is None else ["--host", host]
    arguments += [] if port is None else ["--port", str(port)]
    arguments += ["--check"] if check else []
    raise typer.Exit(main(arguments))


def worker(context: typer.Context, role: Annotated[Role, typer.Argument(help="What it does.")]) -> None:
    """Run a worker (as `python -m workers.ROLE`); further flags are passed on."""
    _become(f"workers.{role.value}", context.args)


def up(
    *,
    folder: Folder = _FOLDER,
    port: Annotated[int, typer.Option(min=0, max=65_535, help="The api's; 0: a free one.")] = 8080,
) -> None:
    """Start PostgreSQL, Redis, S3, the api and workers on this machine, and keep them up."""
    _local(["up", "--folder", str(folder), "--port", str(port)])


def down(*, folder: Folder = _FOLDER) -> None:
    """Stop what `up` started."""
    _local(["down", "--folder", str(folder)])


def demo(*, folder: Annotated[Path | None, typer.Option(help="Data folder; default: a temporary one.")] = None) -> None:
    """Run a mixed load from nothing, print the results, leave nothing running."""
    _local(["demo", *([] if folder is None else ["--folder", str(folder)])])


def _local(arguments: list[str]) -> None:
    from deploy.local.__main__ import main  # noqa: PLC0415 - not part of a client-only installation

    raise typer.Exit(main(arguments))


def _become(module: str, arguments: list[str]) -> NoReturn:
    """Signals then reach the worker itself, not a parent of it."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606 - our own modules
