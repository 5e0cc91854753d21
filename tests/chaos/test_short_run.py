"""Every fault once, on a small load: nothing is lost, nothing is done twice, poison harms nobody else.

Runs after the other tests, in a phase of its own (`make suite`), for it wants the machine. Deselect with
`-m "not chaos"`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.bounds import overstepped
from tests.chaos.run import Plan, run
from tests.chaos.world import ROLES, WORKERS

ITEMS = 1_500
FAULTS = {
    *("kill", "kill_api_during_submit", "kill_child", "freeze", "freeze_leader", "sigterm"),
    *("flush_redis", "kill_redis", "restart_postgres", "repeat_messages", "ambiguous_commits"),
    *("s3_error", "s3_hang", "s3_slow", "s3_truncated", "fill_scratch", "wrong_clock", "cancel", "redrive", "asked"),
}


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_everything_accepted_ends_exactly_once(tmp_path: Path) -> None:
    report = run(Plan(items=ITEMS, seed=7, minutes=12), tmp_path)
    ledger = report.ledger
    assert ledger.broken == []
    assert overstepped(report) == []
    assert ledger.succeeded + ledger.failed + ledger.cancelled >= ITEMS
    assert ledger.by_the_model > 0
    assert ledger.zombies_rejected > 0
    assert ledger.recovered > 0
    assert set(ledger.codes) == {
        *("decoder_crashed", "decode_timed_out", "decoder_out_of_memory"),
        *("worker_out_of_memory", "internal_error", "worker_lost"),
    }
    # Every fault was there and hit something.
    hits = {name: report.hits.get(name, 0) for name in FAULTS - set(report.not_run)}
    assert [name for name, hit in hits.items() if not hit] == []
    assert {entry["role"] for entry in report.faults if entry["fault"] == "kill"} >= {"api", *WORKERS}
    assert {entry["role"] for entry in report.faults if entry["fault"] == "sigterm"} == set(ROLES)
