"""Exporting the results of one large job, turn by turn as a cpu worker does, against a raw COPY of the same rows.

The rows are made by SQL. The target is a local folder, so what is measured is reading, rendering and packing. The COPY
sends the columns of the same join as text into a file, unrendered: the least that any export could cost.
"""

from __future__ import annotations

import argparse
import resource
import time
import uuid
from pathlib import Path
from typing import Any

import psycopg

import migrations
from deploy.local.servers import Postgres
from pipelines.blobs.local import LocalBlobStore
from pipelines.control.exports.run import ExportTools, run_turn
from pipelines.control.exports.target import ExportRules
from pipelines.jobs.exports import Compression, ExportFormat, ExportOptions
from pipelines.jobs.ids import uuid7
from pipelines.jobs.states import ExportState
from pipelines.store import export_leases, exports, tenants
from pipelines.store.session import Database
from tests.bench.orchestration_stack import Figures, bench

JOB = """
INSERT INTO jobs (id, tenant_id, kind, parameters, source, priority, state, plan_state, item_count, document_count,
    finished_at) VALUES (%(job)s, %(tenant)s, 'ocr', '{}', '{}', 1, 'succeeded', 'done', %(rows)s, %(rows)s, now());
"""
PROGRESS = """
INSERT INTO job_progress (job_id, tenant_id, state, plan_state, item_count, counts)
VALUES (%(job)s, %(tenant)s, 'succeeded', 'done', %(rows)s, jsonb_build_object('succeeded', %(rows)s::bigint))
"""
DOCUMENTS = """
INSERT INTO documents (job_id, doc, tenant_id, name, media, state)
SELECT %(job)s, n, %(tenant)s, 'scans/2026/' || n || '.png', '[{"url": "s3://scans/x"}]', 'done'
FROM generate_series(0, %(rows)s::bigint - 1) AS n
"""
ITEMS = """
INSERT INTO items (job_id, seq, tenant_id, doc, state, attempt, pack_key, tiles, media_hash, finished_at)
SELECT %(job)s, n, %(tenant)s, n, 'succeeded', 2, 'packs/x', 13, md5(n::text), now()
FROM generate_series(0, %(rows)s::bigint - 1) AS n
"""
RESULTS = """
INSERT INTO results (job_id, seq, tenant_id, attempt, text, output, finish_reason, media_hash, prompt_tokens,
    cached_tokens, completion_tokens, tiles, device_seconds, mean_logprob, provenance)
SELECT %(job)s, n, %(tenant)s, 2, 'Invoice ' || n || repeat(E'\n' || md5(n::text) || ' 12.50 EUR', 12),
    '{"format": "text"}', 'stop', md5(n::text), 3400, 0, 250, 13, 0.5, -0.1,
    jsonb_build_object('model', 'internvl-chat-v1-5', 'weights_hash', md5('w'), 'attempt', 2, 'worker', 'gpu@host:1')
FROM generate_series(0, %(rows)s::bigint - 1) AS n
"""
_COPY = """
COPY (
    SELECT i.seq, i.doc, i.page, i.state, i.attempt, d.name, d.metadata, r.text, r.output, r.flags, r.finish_reason,
        r.media_hash, r.prompt_tokens, r.cached_tokens, r.completion_tokens, r.tiles, r.device_seconds, r.mean_logprob,
        r.provenance, r.created_at
    FROM items i JOIN documents d ON d.job_id = i.job_id AND d.doc = i.doc
    JOIN results r ON r.job_id = i.job_id AND r.seq = i.seq
    WHERE i.job_id = '{job}' ORDER BY i.seq
) TO STDOUT
"""
_FORMS = {
    "jsonl": ExportOptions(),
    "jsonl_zstd": ExportOptions(compression=Compression.ZSTD),
    "parquet": ExportOptions(format=ExportFormat.PARQUET),
}


def measure(folder: Path, chosen: argparse.Namespace) -> Figures:
    """Seconds of each form and of the COPY; peak resident memory in MiB, and what of it the exports added."""
    figures: dict[str, Any] = {"rows": chosen.rows}
    with Postgres(folder / "postgres", durable=False) as server:
        url = server.create_database("bench")
        migrations.upgrade(url)
        database = Database(url, pool_size=2)
        with database.begin() as conn:
            tenant = tenants.create_tenant(conn, "bench").tenant_id
        job = uuid7()
        with psycopg.connect(database.url, autocommit=True) as conn:
            for sql in (JOB, PROGRESS, DOCUMENTS, ITEMS, RESULTS):
                conn.execute(sql, {"job": job, "tenant": tenant, "rows": chosen.rows})
            for table in ("documents", "items", "results"):
                conn.execute(f"VACUUM ANALYZE {table}")
            before = _peak()
            for name, options in _FORMS.items():
                figures |= {
                    f"{name}_{key}": value for key, value in _export(database, tenant, job, options, folder).items()
                }
            figures |= {"peak_mib": round(_peak(), 1), "peak_growth_mib": round(_peak() - before, 1)}
            figures["copy_seconds"] = round(_copy(conn, job, folder / "copied"), 1)
        database.close()
    for name in _FORMS:
        figures[f"{name}_times_a_copy"] = round(figures[f"{name}_seconds"] / figures["copy_seconds"], 1)
    return figures


def _export(
    database: Database, tenant: uuid.UUID, job: uuid.UUID, options: ExportOptions, folder: Path
) -> dict[str, Any]:
    tools = ExportTools(
        own=LocalBlobStore(folder / "store"),
        open_bucket=lambda _: LocalBlobStore(folder / "store"),
        rules=ExportRules(buckets=(), blob_url="file:///"),
        scratch=folder / "scratch",
    )
    with database.begin() as conn:
        export = exports.insert(conn, tenant, job, options)
    assert export is not None
    began, turns = time.monotonic(), 0
    while export.state is not ExportState.SUCCEEDED:
        assert not export.state.terminal, export.error_message
        with database.begin() as conn:
            lease = export_leases.claim(conn, export.export_id, worker="bench", lease=60)
        assert lease is not None
        run_turn(database, lease, tools, stopped=lambda: False)
        turns += 1
        with database.begin() as conn:
            export = exports.get(conn, tenant, job, export.export_id)
        assert export is not None
    seconds = time.monotonic() - began
    return {
        "seconds": round(seconds, 1),
        "rows_a_second": round(export.rows / seconds),
        "mib": round(export.bytes / 2**20, 1),
        "shards": export.shards,
        "turns": turns,
    }


def _copy(conn: psycopg.Connection, job: uuid.UUID, target: Path) -> float:
    began = time.monotonic()
    with target.open("wb") as file, conn.cursor().copy(_COPY.format(job=job)) as rows:
        for part in rows:
            file.write(part)
    return time.monotonic() - began


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    bench("Exports", measure, rows=1_000_000)
