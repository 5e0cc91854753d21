"""A small world for the store's tests: a tenant, jobs with items in any state, a worker that does what it is told."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Sequence
from typing import Any

from pipelines.jobs.ids import uuid7
from pipelines.jobs.models import ClaimedItem, ItemResult, MediaRef, PackRef
from pipelines.jobs.outcomes import Outcome, Prepared, Succeeded
from pipelines.store import documents, items, jobs, tenants
from pipelines.store.items import Key
from pipelines.store.session import Database

LEASE = 60.0

_names = itertools.count()


def result(text: str = "answer", **changes: Any) -> ItemResult:
    """An item's result."""
    fields: dict[str, Any] = {
        "text": text,
        "output": {"text": text},
        "flags": (),
        "finish_reason": "stop",
        "media_hash": "hash",
        "prompt_tokens": 10,
        "cached_tokens": 2,
        "completion_tokens": 3,
        "tiles": 4,
        "device_seconds": 0.5,
        "mean_logprob": -0.1,
        "provenance": {"model": "m"},
    }
    return ItemResult(**{**fields, **changes})


def prepared(key: str = "packs/a", size: int = 1000, versions: tuple[str | None, ...] = ()) -> Prepared:
    """An outcome of PREPARE."""
    return Prepared(pack=PackRef(key=key, sha256="f" * 64, size=size, tiles=4), media_hash="hash", versions=versions)


def key_of(item: ClaimedItem) -> Key:
    """job, seq, attempt."""
    return (item.job_id, item.seq, item.attempt)


class World:
    """Everything goes through the store's own functions, each in a transaction of its own."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def tenant(self, **fields: Any) -> uuid.UUID:
        """A new tenant."""
        with self.database.begin() as conn:
            return tenants.create_tenant(conn, f"tenant {next(_names)}", **fields).tenant_id

    def submitted(self, tenant_id: uuid.UUID, **fields: Any) -> uuid.UUID:
        """A job that nobody has looked at."""
        job_id = fields.pop("job_id", None) or uuid7()
        with self.database.begin() as conn:
            jobs.insert_job(
                conn,
                jobs.NewJob(
                    job_id=job_id, tenant_id=tenant_id, kind="ocr", parameters={}, source={"type": "none"}, **fields
                ),
            )
        return job_id

    def job(
        self,
        tenant_id: uuid.UUID,
        count: int,
        *,
        ready: bool = False,
        planned: Sequence[jobs.PlannedDocument] | None = None,
        done: bool = True,
        **fields: Any,
    ) -> uuid.UUID:
        """A planned job with `count` single items, pending or `ready`; or with the documents given."""
        job_id = self.submitted(tenant_id, **fields)
        if planned is None:
            planned = [
                jobs.PlannedDocument(name=f"page {n}", media=(MediaRef(url=f"s3://bucket/{n}"),)) for n in range(count)
            ]
        with self.database.begin() as conn:
            lease = jobs.claim_plan(conn, job_id, worker="planner", lease=LEASE)
            assert lease is not None
            assert jobs.append_plan(conn, lease, documents=planned, cursor=None, done=done) is not None
        if ready and count:
            self.complete(*((item, prepared()) for item in self.claim(job_id, range(count))))
        return job_id

    def claim(
        self, job_id: uuid.UUID, seqs: Sequence[int], *, worker: str = "w", lease: float = LEASE
    ) -> tuple[ClaimedItem, ...]:
        """Lease pending items."""
        with self.database.begin() as conn:
            return items.claim_prepare(conn, job_id, seqs, worker=worker, lease=lease)

    def claim_ready(
        self, job_id: uuid.UUID, seqs: Sequence[int], *, worker: str = "g", lease: float = LEASE
    ) -> tuple[ClaimedItem, ...]:
        """Lease ready items."""
        with self.database.begin() as conn:
            return items.claim_infer(conn, [(job_id, seq) for seq in seqs], worker=worker, lease=lease)

    def claim_documents(self, job_id: uuid.UUID, docs: Sequence[int]) -> tuple[documents.ClaimedDocument, ...]:
        """Lease documents that wait for their pages."""
        with self.database.begin() as conn:
            return documents.claim_documents(conn, job_id, docs, worker="w", lease=LEASE)

    def complete(self, *entries: tuple[ClaimedItem, Outcome]) -> frozenset[Key]:
        """Hand in outcomes."""
        with self.database.begin() as conn:
            return items.complete(conn, entries)

    def succeed(self, job_id: uuid.UUID, seqs: Sequence[int], *, ready: bool = False) -> None:
        """Take items all the way."""
        if not ready:
            self.complete(*((item, prepared()) for item in self.claim(job_id, seqs)))
        claimed = self.claim_ready(job_id, seqs)
        assert len(claimed) == len(seqs)
        assert len(self.complete(*((item, Succeeded(result=result())) for item in claimed))) == len(seqs)

    def rows(self, sql: str, **values: Any) -> list[Any]:
        """Whatever the test wants to see."""
        with self.database.begin() as conn:
            return list(conn.exec_driver_sql(sql, values or None))

    def item(self, job_id: uuid.UUID, seq: int) -> Any:
        """One item's row."""
        (row,) = self.rows("SELECT * FROM items WHERE job_id = %(job)s AND seq = %(seq)s", job=job_id, seq=seq)
        return row

    def states(self, job_id: uuid.UUID) -> dict[str, int]:
        """How many items are in which state, counted in full."""
        return {
            row[0]: row[1]
            for row in self.rows("SELECT state, count(*) FROM items WHERE job_id = %(job)s GROUP BY 1", job=job_id)
        }

    def age(self, sql_table: str, column: str, seconds: float, where: str = "true") -> None:
        """Make a time older: what waiting would do."""
        self.rows(
            f"UPDATE {sql_table} SET {column} = {column} - make_interval(secs => %(age)s) WHERE {where} RETURNING 1",
            age=seconds,
        )
