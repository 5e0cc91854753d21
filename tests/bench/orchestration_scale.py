"""Items a second with 1,000,000 items already in the tables, against the same tables empty.

One run, one stack with the no-op engine. Two jobs are measured on the empty tables; then `stored` items of 200 ended
jobs, with their documents and results, are written by SQL into the partitions of six months, this month's among them;
then two more jobs are measured. All four have equally many pictures, and no two the same one. A machine that others use
drifts, and empty tables cannot be measured again once they are full: the better job of each pair counts, and the
processor time an item, that of all processes of the stack, stands beside it.
"""

from __future__ import annotations

import argparse
import os
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg

from api.client import Client
from pipelines.jobs.ids import uuid7_floor
from pipelines.store.partitions import create_month, month_start
from pipelines.store.session import Database
from tests.bench.exports import DOCUMENTS, ITEMS, JOB, PROGRESS, RESULTS
from tests.bench.orchestration_processor import processor_seconds
from tests.bench.orchestration_stack import Figures, bench, engine_stack, write_pictures

_JOBS, _MONTHS, _WARM = 200, 6, 50
_MEASURED = ("first", "second", "third", "fourth")
_READ = {"skip_blank": False}  # pictures of one colour bear no text, and the engine is what is measured
_KEPT = {"BATCHSIGHT_RETENTION_DAYS": "3650"}  # the dispatcher would drop the old months while they are measured
_LONG_AGO = """
UPDATE jobs SET created_at = %(at)s, started_at = %(at)s, finished_at = %(at)s + interval '1 hour' WHERE id = %(job)s
"""


def measure(folder: Path, chosen: argparse.Namespace) -> Figures:
    """Items/s of the better job of each pair, their ratio, and of all four in their order; processor time an item."""
    rows = chosen.stored // _JOBS
    assert rows, f"at least {_JOBS} items are stored, one a job"
    with engine_stack(folder, slots=64, processes=2, environment=_KEPT) as stack:
        addresses = stack.addresses
        assert addresses is not None
        # Other pictures for each job: a pack that an earlier one made would be found and not be made again.
        warm = write_pictures(stack, "warm", _WARM)
        prefixes = [
            write_pictures(stack, name, chosen.items, first=_WARM + number * chosen.items)
            for number, name in enumerate(_MEASURED)
        ]
        time.sleep(1.5)  # the S3 server's listings are a second old at most
        with (
            Client(addresses.api_url, api_key=addresses.api_key) as client,
            psycopg.connect(addresses.database_url, autocommit=True) as conn,
        ):
            _run(client, warm, _WARM)
            empty = [_run(client, prefix, chosen.items) for prefix in prefixes[:2]]
            _fill(conn, addresses.database_url, rows)
            full = [_run(client, prefix, chosen.items) for prefix in prefixes[2:]]
            # Counted at the end: the scan would have read the tables into memory before the full ones were measured.
            partitions = _partitions(conn, expected=rows * _JOBS, others=_WARM + len(prefixes) * chosen.items)
    before, after = (min(run.seconds for run in runs) for runs in (empty, full))
    return {
        "items": chosen.items,
        "stored_items": rows * _JOBS,
        "partitions": partitions,
        "items_a_second_empty": round(chosen.items / before, 1),
        "items_a_second_full": round(chosen.items / after, 1),
        "ratio": round(before / after, 3),
        "items_a_second_of_each": ", ".join(f"{chosen.items / run.seconds:.1f}" for run in (*empty, *full)),
        "processor_ms_an_item_empty": round(1000 * min(run.processor for run in empty) / chosen.items, 1),
        "processor_ms_an_item_full": round(1000 * min(run.processor for run in full) / chosen.items, 1),
    }


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One job, from its submission until it has ended; both in seconds."""

    seconds: float
    processor: float


def _run(client: Client, prefix: str, items: int) -> _Run:
    began, spent = time.monotonic(), processor_seconds(os.getpid())
    submitted = client.submit("ocr", source={"type": "prefix", "url": prefix}, parameters=_READ)
    job = client.wait(submitted.id, timeout=1_200)
    run = _Run(seconds=time.monotonic() - began, processor=processor_seconds(os.getpid()) - spent)
    assert job.counts["succeeded"] == items, job
    return run


def _fill(conn: psycopg.Connection, database_url: str, rows: int) -> None:
    """200 jobs that ended, `rows` items each, in the months up to this one; nothing of it is left to do afterwards."""
    found = conn.execute("SELECT id FROM tenants").fetchone()
    assert found is not None
    now = datetime.now(UTC)
    database = Database(database_url, pool_size=1)
    for offset in range(_MONTHS):
        with database.begin() as one:  # a month a transaction: each holds locks that the dispatcher waits for
            create_month(one, month_start(now, -offset))
    database.close()
    for number in range(_JOBS):
        at = month_start(now, -(number % _MONTHS)) + timedelta(seconds=number)
        values = {"job": _job_id(at, number), "tenant": found[0], "rows": rows, "at": at}
        for sql in (JOB, PROGRESS, DOCUMENTS, ITEMS, RESULTS, _LONG_AGO):
            conn.execute(sql, values)
    # What autovacuum and the next checkpoint would do beside the measured jobs: full tables are measured, not filling.
    for table in ("jobs", "job_progress", "documents", "items", "results"):
        conn.execute(f"VACUUM (ANALYZE) {table}")
    conn.execute("CHECKPOINT")


def _job_id(at: datetime, number: int) -> uuid.UUID:
    """The UUIDv7 of a job that was submitted at `at`; `number` stands for its random bits."""
    return uuid.UUID(int=uuid7_floor(at).int | 0x7 << 76 | 0b10 << 62 | number)


def _partitions(conn: psycopg.Connection, *, expected: int, others: int) -> int:
    """How many partitions hold items, once every table has been seen to hold all of its rows."""
    partitions = 0
    for table in ("documents", "items", "results"):
        row = conn.execute(f"SELECT count(*), count(DISTINCT tableoid) FROM {table}").fetchone()
        assert row is not None
        rows, partitions = row
        assert rows == expected + others, (table, rows)
        assert partitions >= _MONTHS, (table, partitions)
    return partitions


if __name__ == "__main__":
    bench("Orchestration: scale", measure, items=1_500, stored=1_000_000)
