"""A manifest durable in PostgreSQL as documents and items, against a raw COPY of the same rows; peak memory.

Time runs from the submission until the plan is done and committed, listing, parsing and two tables with all their
indexes included. The COPY writes the same rows, text already at hand, into empty copies of both tables, indexes too.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import psycopg

from api.client import Client
from deploy.local.stack import SAMPLES_BUCKET
from tests.bench.orchestration_stack import Figures, bench, engine_stack, peaks

_TABLES = ("documents", "items")


def measure(folder: Path, chosen: argparse.Namespace) -> Figures:
    """Seconds of both, their ratio, peak resident memory in MiB."""
    with engine_stack(folder, workers=0, environment={"BATCHSIGHT_READY_ITEMS": "1"}) as stack:
        addresses = stack.addresses
        assert addresses is not None
        where = stack.folder / "s3" / "buckets" / SAMPLES_BUCKET / "lists"
        where.mkdir(parents=True)
        with where.joinpath("all.jsonl").open("w", encoding="utf-8") as out:
            for number in range(chosen.lines):
                out.write(json.dumps({"url": f"s3://{SAMPLES_BUCKET}/p/{number:07d}.png", "id": f"p-{number}"}) + "\n")
        time.sleep(1.5)  # the S3 server's listings are a second old at most
        source = {"type": "manifest", "format": "jsonl", "url": f"s3://{SAMPLES_BUCKET}/lists/all.jsonl"}
        with psycopg.connect(addresses.database_url, autocommit=True) as conn:
            with Client(addresses.api_url, api_key=addresses.api_key) as client:
                before = peaks(stack)
                began = time.monotonic()
                job = client.submit("ocr", source=source)
                _wait_planned(conn, job.id)
                ours = time.monotonic() - began
                after = peaks(stack)
                client.cancel(job.id)
            planned = conn.execute("SELECT count(*) FROM items WHERE job_id = %s", (job.id,)).fetchone()
            assert planned == (chosen.lines,)
            copy = _copy(conn, job.id)
    return {
        "lines": chosen.lines,
        "seconds": round(ours, 2),
        "lines_a_second": round(chosen.lines / ours),
        "copy_seconds": round(copy, 2),
        "times_a_copy": round(ours / copy, 2),
        "api_peak_growth_mib": round(after["api"] - before["api"], 1),
        "planner_peak_mib": round(after["cpu"], 1),
        "planner_peak_growth_mib": round(after["cpu"] - before["cpu"], 1),
    }


def _wait_planned(conn: psycopg.Connection, job_id: str) -> None:
    while True:
        row = conn.execute("SELECT plan_state FROM jobs WHERE id = %s", (job_id,)).fetchone()
        if row == ("done",):
            return
        assert row != ("failed",), "the plan failed"
        time.sleep(0.02)


def _copy(conn: psycopg.Connection, job_id: str) -> float:
    rows: dict[str, list[bytes]] = {}
    for table in _TABLES:
        with conn.cursor().copy(f"COPY (SELECT * FROM {table} WHERE job_id = '{job_id}') TO STDOUT") as out:
            rows[table] = [bytes(part) for part in out]
        conn.execute(f"CREATE TABLE raw_{table} (LIKE {table} INCLUDING ALL)")
    began = time.monotonic()
    for table in _TABLES:
        with conn.cursor().copy(f"COPY raw_{table} FROM STDIN") as into:
            for part in rows[table]:
                into.write(part)
    return time.monotonic() - began


if __name__ == "__main__":
    bench("Orchestration: planning", measure, lines=100_000)
