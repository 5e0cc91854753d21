"""The bounds that a run has to keep beside its ledger, each with its reason."""

from __future__ import annotations

from tests.chaos.run import Report
from tests.chaos.world import GROUP, LEASE, READY_BYTES, SLOTS, SWEEP, WINDOW

_SLACK = 5.0
_KILLS_OF_A_KILLER = 3
_MOST_HELD = {role: slots * (GROUP if role.startswith("cpu") else 1) for role, slots in SLOTS.items()}


def overstepped(report: Report) -> list[str]:
    """Every bound that this run did not keep."""
    ledger = report.ledger
    # What each worker that died, froze or was stopped could hold; a killer item takes any engine worker, three times.
    blows = [
        _MOST_HELD[entry["role"]]
        for entry in report.faults
        if entry["fault"] in {"kill", "kill_child", "freeze", "sigterm"} and entry["role"] in _MOST_HELD
    ]
    blows += [max(SLOTS.values())] * _KILLS_OF_A_KILLER * report.plan.killers
    # A worker that is told to stop puts back the messages that it had in hand.
    window = WINDOW + max(_MOST_HELD.values())
    # Items that an engine worker gave back or lost come on top of those that were let in.
    ready = READY_BYTES + report.largest_pack * sum(SLOTS.values())
    bounds = {
        "lost leases, by what the workers that were hit could hold": (ledger.lost_leases, sum(blows)),
        "messages in a queue": (report.deepest_queue, window),
        "bytes of packs that wait": (report.most_ready_bytes, ready),
        "seconds until a lost item is in line again, p99": (ledger.in_line_p99, LEASE + SWEEP + _SLACK),
    }
    return [f"{name}: {value}, more than {most}" for name, (value, most) in bounds.items() if value > most]
