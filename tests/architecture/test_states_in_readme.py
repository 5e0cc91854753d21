from __future__ import annotations

from pathlib import Path

from tests.architecture.states_table import render

README = Path(__file__).parents[2] / "README.md"


def test_readme_draws_every_state_and_every_arrow() -> None:
    text = README.read_text(encoding="utf-8")
    drawn = text.partition("<!-- states -->\n")[2].partition("\n<!-- /states -->")[0]
    assert drawn == render(), "run `python -m tests.architecture.states_table` and put it between README's markers"
