from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from deploy.local.settings_table import render, variable
from pipelines.settings import Settings

README = Path(__file__).parents[2] / "README.md"


def test_readme_lists_every_setting_with_its_default() -> None:
    text = README.read_text(encoding="utf-8")
    listed = text.partition("<!-- settings -->\n")[2].partition("\n<!-- /settings -->")[0]
    assert listed == render(), "run `python -m deploy.local.settings_table` and put it between README's markers"


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_listed_variable_reaches_its_setting(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")  # no .env of a developer's
    field = Settings.model_fields[name]
    default = getattr(Settings(), name)
    for value in ("7", "true", "false", "int8", "float16", "tensor", "fake", "console", "debug"):
        monkeypatch.setenv(variable(name, field), value)
        try:
            if getattr(Settings(), name) != default:
                return
        except ValidationError:
            continue
    pytest.fail(f"{variable(name, field)} changes nothing")
