"""`python -m tests.chaos`: the long run. Exit status 1 where a promise was broken."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.chaos.bounds import overstepped
from tests.chaos.run import Plan, Report, run


def main() -> int:
    """Parse the command line, run, print the table, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--items", type=int, default=40_000)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--poison", type=int, default=0, help="of each sort; 0: one per cent together")
    parser.add_argument("--killers", type=int, default=0, help="items that kill an engine worker; 0: one in 5,000")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between faults; 0: longer for more items")
    parser.add_argument("--engine-seconds", type=float, default=0.2, help="what one answer takes")
    parser.add_argument("--folder", type=Path, help="an empty folder for data, logs, report.json and faults.jsonl")
    chosen = parser.parse_args()
    folder = chosen.folder or Path(tempfile.mkdtemp(prefix="batchsight-chaos-"))
    plan = Plan(
        items=chosen.items,
        seed=chosen.seed,
        minutes=chosen.minutes,
        kills=chosen.kills,
        poison=chosen.poison or max(1, chosen.items // 500),
        killers=chosen.killers or max(1, chosen.items // 5_000),
        engine_seconds=chosen.engine_seconds,
        asked=max(40, chosen.items // 200),
        pause=chosen.pause or max(0.7, chosen.items / 10_000),
    )
    report = run(plan, folder)
    show(report, Console())
    print(f"report and fault log: {folder}")
    return 1 if report.ledger.broken or overstepped(report) else 0


def show(report: Report, console: Console) -> None:
    """The ledger as a table."""
    table = Table("ledger", "", title=f"seed {report.plan.seed}, {report.kills} kills, {report.seconds} s")
    for name, value in report.ledger.to_json().items():
        if name != "broken":
            table.add_row(name, str(value))
    table.add_row("deepest queue", str(report.deepest_queue))
    table.add_row("most ready bytes", str(report.most_ready_bytes))
    table.add_row("hits", str(report.hits))
    for name, reason in report.not_run.items():
        table.add_row(f"not run: {name}", reason)
    console.print(table)
    for line in [*report.ledger.broken[:50], *overstepped(report)]:
        console.print(line, style="red", markup=False)


if __name__ == "__main__":
    sys.exit(main())
