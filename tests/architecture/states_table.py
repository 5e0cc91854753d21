"""Prints README's state tables from `pipelines.jobs.states`; run `python -m tests.architecture.states_table`."""

from __future__ import annotations

from pipelines.jobs.states import ITEM_ARROWS, ITEM_MEANING, JOB_ARROWS, JOB_MEANING, ItemState, JobState


def render() -> str:
    """Both tables as Markdown."""
    lines = ["| item | meaning | next |", "|---|---|---|"]
    for item in ItemState:
        following = ", ".join(f"`{after}`" for after in ItemState if after in ITEM_ARROWS[item]) or "–"
        lines.append(f"| `{item}` | {ITEM_MEANING[item]} | {following} |")
    lines += ["", "| job | meaning | next |", "|---|---|---|"]
    for job in JobState:
        following = ", ".join(f"`{after}`" for after in JobState if after in JOB_ARROWS[job]) or "–"
        lines.append(f"| `{job}` | {JOB_MEANING[job]} | {following} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(render())
