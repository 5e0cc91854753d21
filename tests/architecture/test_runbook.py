from __future__ import annotations

import re
from pathlib import Path

from deploy.local.settings_table import variable
from pipelines.settings import Settings

ROOT = Path(__file__).parents[2]
RUNBOOK = (ROOT / "deploy" / "RUNBOOK.md").read_text(encoding="utf-8")
SOURCES = "\n".join(
    path.read_text(encoding="utf-8") for room in ("api", "workers", "pipelines") for path in (ROOT / room).rglob("*.py")
)
LOGGED = set(re.findall(r"_log\.\w+\(\s*\"([\w.]+)\"", SOURCES))


def section(title: str) -> str:
    return RUNBOOK.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_every_event_of_the_runbook_is_logged_somewhere() -> None:
    rows = [row.split("|")[1] for row in section("Log events that want a person").splitlines() if row.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([\w.]+)`", row)}
    assert len(named) > 10
    assert named <= LOGGED


def test_every_error_that_is_logged_has_its_place_in_the_runbook() -> None:
    errors = set(re.findall(r"_log\.error\(\s*\"([\w.]+)\"", SOURCES))
    assert errors
    assert {event for event in errors if f"`{event}`" not in RUNBOOK} == set()


def test_every_metric_of_an_alarm_is_counted_somewhere() -> None:
    counted = set(re.findall(r"\"(batchsight_\w+)\"", SOURCES))
    named = set(re.findall(r"\b(batchsight_\w+)", section("Alarms")))
    assert len(named) > 4
    assert {name for name in named if name not in counted and name.removesuffix("_total") not in counted} == set()


def test_every_setting_that_the_runbook_names_exists() -> None:
    known = {variable(name, field) for name, field in Settings.model_fields.items()}
    assert set(re.findall(r"\bBATCHSIGHT_\w+", RUNBOOK)) <= known
