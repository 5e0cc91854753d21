"""What became of everything: read from the database alone, compared with what had to become of it."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from pipelines.jobs.states import ITEM_TERMINAL, JOB_TERMINAL
from pipelines.store.session import Database
from tests.chaos import claims
from tests.chaos.answers import Answered
from tests.chaos.load import Wanted, expected_media_hash

_TERMINAL = {str(state) for state in ITEM_TERMINAL}
_JOB_TERMINAL = {str(state) for state in JOB_TERMINAL}
_FAKE = hashlib.sha256(b"fake").hexdigest()

_Retried = frozenset[tuple[uuid.UUID, int, str]]
"""Job, item and code of every claim that ended in a retry."""


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """A job that was answered with a 2xx. `cancelled`: its items may end cancelled."""

    label: str
    job_id: uuid.UUID
    wanted: Mapping[str, Wanted]
    cancelled: bool = False


@dataclass(kw_only=True)
class Ledger:
    """Counts of items. The first block must be zero; each entry of `broken` is a promise that was not kept.

    `by_the_model`: answered by the real engine. `repeated_work`: claims that have to be made again because a worker
    died, froze or stopped, or a pack was damaged. `retries`: claims that ended in a counted retry, by code: the source,
    the disk or the item itself was the reason. `in_line`: seconds from a lost worker's last sign of life until its item
    could be claimed again; `recovery`: until it was, with the queue in it and the turn that a suspect waits for.
    """

    lost: int = 0
    duplicated: int = 0
    unexpected: int = 0
    wrong_medium: int = 0
    wrong_end: int = 0
    wrong_attempt: int = 0
    wrong_counters: int = 0
    unfinished_jobs: int = 0
    accepted: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    recovered: int = 0
    by_the_model: int = 0
    claims: int = 0
    lost_leases: int = 0
    repeated_work: int = 0
    retries: dict[str, int] = field(default_factory=dict)
    zombies_rejected: int = 0
    terminal_changes_refused: int = 0
    in_line_p50: float = 0.0
    in_line_p99: float = 0.0
    recovery_p50: float = 0.0
    recovery_p99: float = 0.0
    codes: dict[str, int] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    to_ask_again: list[Answered] = field(default_factory=list, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {name: value for name, value in asdict(self).items() if name != "to_ask_again"}


def check(
    database: Database, accepted: Sequence[Accepted], *, tile: int, lease: float = 0.0, logs: Path | None = None
) -> Ledger:
    """Compare the database with what was accepted."""
    ledger = Ledger()
    known = {job.job_id for job in accepted}
    with database.begin() as conn:
        strays = conn.exec_driver_sql("SELECT id FROM jobs").scalars().all()
        noted = claims.summary(conn, lease=lease)
    for stray in set(strays) - known:
        ledger.unexpected += 1
        ledger.broken.append(f"job {stray} was accepted twice, or never submitted")
    retried = frozenset(noted.retried)
    for job in accepted:
        _check_job(database, job, ledger, tile, retried)
    ledger.claims = sum(noted.endings.values())
    ledger.lost_leases = noted.endings.get("lost", 0)
    ledger.repeated_work = sum(noted.endings.get(how, 0) for how in ("lost", "released", "repaired"))
    ledger.retries = dict(Counter(code for _, _, code in noted.retried))
    ledger.in_line_p50, ledger.in_line_p99 = claims.p50(noted.in_line), claims.p99(noted.in_line)
    ledger.recovery_p50, ledger.recovery_p99 = claims.p50(noted.claimed), claims.p99(noted.claimed)
    if logs is not None:
        text = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in sorted(logs.glob("*.log")))
        ledger.zombies_rejected = len(re.findall(r'"event": ?"zombie_write_rejected"', text))
        ledger.terminal_changes_refused = len(re.findall(r"terminal row of \w+ changed", text))
        if ledger.terminal_changes_refused:
            ledger.broken.append("something tried to change a terminal row")
    return ledger


def _check_job(database: Database, job: Accepted, ledger: Ledger, tile: int, retried: _Retried) -> None:
    with database.begin() as conn:
        rows = conn.exec_driver_sql(
            "SELECT i.seq, i.state, i.attempt, i.losses, i.error_code, d.name, r.attempt AS made_by, r.media_hash,"
            " r.text, r.provenance FROM items i JOIN documents d USING (job_id, doc)"
            " LEFT JOIN results r USING (job_id, seq) WHERE i.job_id = %s",
            (job.job_id,),
        ).all()
        state = conn.exec_driver_sql("SELECT state FROM jobs WHERE id = %s", (job.job_id,)).scalar_one_or_none()
        counts = conn.exec_driver_sql("SELECT counts FROM job_progress WHERE job_id = %s", (job.job_id,)).scalar()
    if state not in _JOB_TERMINAL:
        ledger.unfinished_jobs += 1
        ledger.broken.append(f"{job.label} is {state}")
    names = Counter(PurePosixPath(row.name).name for row in rows)
    ledger.accepted += len(job.wanted)
    missing = 0 if job.cancelled else len(set(job.wanted) - set(names))  # what a cancel left unplanned is not owed
    lost = missing + sum(row.state not in _TERMINAL for row in rows)
    duplicated = sum(count - 1 for count in names.values())
    unexpected = sum(name not in job.wanted for name in names)
    if lost or duplicated or unexpected:
        ledger.broken.append(f"{job.label}: {lost} lost, {duplicated} duplicated, {unexpected} unexpected")
    ledger.lost += lost
    ledger.duplicated += duplicated
    ledger.unexpected += unexpected
    if counts is not None:
        actual = Counter(row.state for row in rows)
        if {key: value for key, value in counts.items() if value} != dict(actual):
            ledger.wrong_counters += 1
            ledger.broken.append(f"{job.label} counts {counts}, but has {dict(actual)}")
    for row in rows:
        wanted = job.wanted.get(PurePosixPath(row.name).name)
        if wanted is not None:
            _check_item(row, wanted, job, ledger, tile, retried)


def _check_item(row: Any, wanted: Wanted, job: Accepted, ledger: Ledger, tile: int, retried: _Retried) -> None:
    where = f"{job.label} {row.name}"
    if (row.made_by is None) is (row.state == "succeeded") or row.made_by not in {None, row.attempt}:
        ledger.wrong_attempt += 1
        ledger.broken.append(f"{where}: {row.state} at attempt {row.attempt}, result of attempt {row.made_by}")
    match row.state:
        case "succeeded":
            ledger.succeeded += 1
            ledger.recovered += row.losses > 0
            media_hash = expected_media_hash(wanted.colour, tile)
            real = row.provenance.get("weights_hash", _FAKE) != _FAKE
            if real:
                ledger.by_the_model += 1
                about = row.provenance
                ledger.to_ask_again.append(
                    Answered(
                        where=where,
                        kind=about["kind"],
                        parameters=about["parameters"],
                        colour=wanted.colour,
                        text=row.text,
                    )
                )
            if row.media_hash != media_hash or not (real or f"media {media_hash}" in row.text):
                ledger.wrong_medium += 1
                ledger.broken.append(f"{where}: the answer is about another medium")
            right = wanted.code is None
        case "failed":
            ledger.failed += 1
            ledger.codes[row.error_code] = ledger.codes.get(row.error_code, 0) + 1
            # What fails each time has ended rightly though its last attempt met another fault.
            right = wanted.code is not None and (
                row.error_code == wanted.code or (job.job_id, row.seq, wanted.code) in retried
            )
        case "cancelled":
            ledger.cancelled += 1
            right = job.cancelled
        case _:
            right = False
    if not right:
        ledger.wrong_end += 1
        ledger.broken.append(f"{where}: {row.state} {row.error_code}, {row.losses} losses; wanted {wanted.code}")
