"""Prints README's state tables from `pipelines.jobs.states`; run `python -m tests.architecture.states_table`."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

from pipelines.jobs.states import (
    EXPORT_ARROWS,
    EXPORT_MEANING,
    ITEM_ARROWS,
    ITEM_MEANING,
    JOB_ARROWS,
    JOB_MEANING,
    ExportState,
    ItemState,
    JobState,
)


def render() -> str:
    """The tables as Markdown."""
    return "\n".join(
        [
            *_table("item", ItemState, ITEM_MEANING, ITEM_ARROWS),
            "",
            *_table("job", JobState, JOB_MEANING, JOB_ARROWS),
            "",
            *_table("export", ExportState, EXPORT_MEANING, EXPORT_ARROWS),
        ]
    )


def _table(
    name: str, states: type[enum.StrEnum], meaning: Mapping[Any, str], arrows: Mapping[Any, frozenset[Any]]
) -> list[str]:
    lines = [f"| {name} | meaning | next |", "|---|---|---|"]
    for state in states:
        following = ", ".join(f"`{after}`" for after in states if after in arrows[state]) or "–"
        lines.append(f"| `{state}` | {meaning[state]} | {following} |")
    return lines


if __name__ == "__main__":
    print(render())
