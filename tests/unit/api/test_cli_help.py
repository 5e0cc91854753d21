"""Every command explains itself, and commands say the same things alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from api.cli.main import app

NO_DATA = {"serve", "worker", "up", "down", "demo", "delete", "download", "revoke", "convert"}
"""Commands that run something, or write what has no form but its own."""
KEY_IS_TEXT = {"admin key create"}


def commands() -> Iterator[tuple[str, Any]]:
    def walk(path: str, command: Any) -> Iterator[tuple[str, Any]]:
        children = getattr(command, "commands", None)
        if children is None:
            yield path, command
            return
        for name, child in children.items():
            yield from walk(f"{path} {name}".strip(), child)

    yield from walk("", typer.main.get_command(app))


ALL = dict(commands())


def test_the_commands_of_the_contract_exist() -> None:
    named = ["submit", "status", "watch", "results", "cancel", "redrive", "up", "demo", "worker", "bench"]
    named += ["admin tenant create", "admin key create", "model check", "model convert"]
    assert set(named) <= set(ALL)


@pytest.mark.parametrize("path", ALL)
def test_help_is_complete(path: str) -> None:
    command = ALL[path]
    assert command.help
    assert command.help.rstrip().endswith((".", ":", ")")), command.help
    for parameter in command.params:
        text = getattr(parameter, "help", None)
        assert text, f"{path}: {parameter.name} has no help"
        assert text.rstrip().endswith((".", ")", "?")), f"{path}: {parameter.name}: {text}"
    shown = CliRunner().invoke(app, [*path.split(), "--help"])
    assert shown.exit_code == 0, shown.output
    assert "Usage" in shown.output


@pytest.mark.parametrize("path", [path for path in ALL if path.split()[-1] not in NO_DATA and path not in KEY_IS_TEXT])
def test_every_command_that_writes_data_can_write_json(path: str) -> None:
    flags = {flag: parameter for parameter in ALL[path].params for flag in parameter.opts}
    assert "--json" in flags
    assert getattr(flags["--json"], "help", "") == "Write JSON on stdout."


def test_what_waits_has_a_limit() -> None:
    for path, command in ALL.items():
        flags = {flag for parameter in command.params for flag in parameter.opts}
        if "--wait" in flags or path == "watch":
            assert "--timeout" in flags, path


def test_the_first_page_names_the_exit_codes() -> None:
    text = " ".join(CliRunner().invoke(app, ["--help"]).output.split())
    for code in ("0 done", "2 wrong usage", "3 some items", "5 no permission", "75 try again", "130 interrupted"):
        assert code in text
