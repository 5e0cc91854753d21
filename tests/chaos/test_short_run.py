"""Every fault once, on a small load: nothing is lost, nothing is done twice, poison harms nobody else.

Deselect with `-m "not chaos"`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.run import Plan, run

ITEMS = 800
KILLED = {"api", "cpu-1", "cpu-2", "gpu-1", "gpu-2", "dispatcher-1", "dispatcher-2"}
FAULTS = {
    *("kill", "kill_child", "freeze", "sigterm", "flush_redis", "kill_redis", "restart_postgres", "repeat_messages"),
    *("ambiguous_commits", "s3_error", "s3_hang", "s3_slow", "s3_truncated", "cancel", "redrive"),
}


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_everything_accepted_ends_exactly_once(tmp_path: Path) -> None:
    report = run(Plan(items=ITEMS, seed=7, minutes=12), tmp_path)
    ledger = report.ledger
    assert ledger.broken == []
    assert ledger.succeeded + ledger.failed + ledger.cancelled > ITEMS
    assert {entry["fault"] for entry in report.faults} >= FAULTS
    assert {entry["role"] for entry in report.faults if entry["fault"] == "kill"} == KILLED
    assert set(ledger.codes) == {
        *("decoder_crashed", "decode_timed_out", "decoder_out_of_memory"),
        *("worker_out_of_memory", "internal_error", "worker_lost"),
    }
