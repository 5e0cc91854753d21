"""`batchsight`: the command line. Data on stdout, progress and errors on stderr, exit codes of `api.cli.exits`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

import typer

from api.cli import admin, bench, exports, files, jobs, model, output, schedules, server, webhooks
from api.cli.context import Options
from api.cli.exits import ExitCode, of_error
from api.client import BatchsightError as ClientError
from pipelines.jobs.errors import BatchsightError

app = typer.Typer(
    name="batchsight",
    help="Turns piles of documents, images and videos into text.",
    epilog=(
        "Data goes to stdout, progress and messages to stderr. Exit codes: 0 done, 1 error, 2 wrong usage, 3 some "
        "items failed, 4 the job failed, expired or was cancelled, 5 no permission, 75 try again later, 130 "
        "interrupted. Address and key: flags, then the environment, .env, "
        "~/.config/batchsight/config.toml (url, api_key)."
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def common(
    context: typer.Context,
    *,
    url: Annotated[str | None, typer.Option(help="The api's address (BATCHSIGHT_URL).")] = None,
    api_key: Annotated[str | None, typer.Option(help="Your key (BATCHSIGHT_API_KEY).", show_default=False)] = None,
    show_version: Annotated[bool, typer.Option("--version", is_eager=True, help="Print the version.")] = False,
) -> None:
    """Turns piles of documents, images and videos into text."""
    if show_version:
        output.write_text(version("batchsight"))
        raise typer.Exit
    context.obj = Options(url=url, api_key=api_key)


jobs.register(app)
app.command()(bench.bench)
exports.register(app)
app.add_typer(schedules.app, name="schedule")
app.add_typer(files.app, name="files")
app.add_typer(webhooks.app, name="webhook")
app.add_typer(admin.app, name="admin")
app.add_typer(model.app, name="model")
server.register(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code. Never raises."""
    try:
        app(args=list(arguments) if arguments is not None else None)
    except SystemExit as ended:  # the command line's own ways out: usage errors (2), `typer.Exit`, Ctrl-C (130)
        return ended.code if isinstance(ended.code, int) else ExitCode.OK
    except (ClientError, BatchsightError) as error:
        text = error.message if isinstance(error, BatchsightError) else str(error)
        output.messages.print(f"error: {text}", soft_wrap=True)
        return of_error(error)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return ExitCode.ERROR
    except OSError as error:
        output.messages.print(f"error: {error}", soft_wrap=True)
        return ExitCode.ERROR
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
