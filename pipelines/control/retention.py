"""Retention: old months dropped, expired files, keys, packs and webhooks' log collected, partitions created ahead.

A month goes when its end is older than the retention and no job of it is unfinished: its jobs' rows first, in batches,
then the partitions with their documents, items and results. Blobs are deleted through a port, inside the transaction
that deletes their row (see `store.packs`, `store.files`), a few at a time. A step that fails is logged and left to the
next run; the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Protocol

import structlog
from sqlalchemy import Connection

from pipelines.blobs.base import BlobStat
from pipelines.control.exports.target import folder_of
from pipelines.jobs.errors import ServiceUnavailable
from pipelines.store import (
    exports,
    files,
    idempotency,
    leader,
    packs,
    partitions,
    retention,
    schedule_runs,
    schedules,
    webhook_retention,
    workers,
)
from pipelines.store.leader import Epoch
from pipelines.store.partitions import Partition
from pipelines.store.session import Database

_log = structlog.get_logger(__name__)

PACK_PREFIX = "packs/"
FILE_PREFIX = "files/"
_FORGET_WORKERS = 24 * 3600.0
_ORPHANS_A_RUN = 10_000
_EXPORTED_A_STEP = 200  # within the time that a transaction may be idle


class ListBlobs(Protocol):
    """`BlobStore.list`."""

    def __call__(self, prefix: str, *, start_after: str = "") -> Iterator[BlobStat]:
        """Blobs under a prefix, in the order of their keys."""


@dataclass(frozen=True, kw_only=True)
class Retained:
    """What a run did."""

    partitions_created: int = 0
    partitions_dropped: int = 0
    jobs: int = 0
    files: int = 0
    packs: int = 0
    exports: int = 0
    orphans: int = 0
    idempotency_keys: int = 0
    events: int = 0


class Retention:
    """Called by one thread of the leader, every few minutes."""

    def __init__(
        self,
        database: Database,
        *,
        delete_blob: Callable[[str], None],
        list_blobs: ListBlobs,
        days: int,
        pack_age: float = packs.MIN_AGE,
    ) -> None:
        self._database = database
        self._delete_blob = delete_blob
        self._list_blobs = list_blobs
        self._age = timedelta(days=days)
        self._pack_age = pack_age
        self._orphans_after = {PACK_PREFIX: "", FILE_PREFIX: ""}

    def run(self, epoch: Epoch) -> Retained:
        """Everything that is due. Raises `LeaderLost`; a server that is away postpones its own step only."""
        created = self._step(epoch, "create_partitions", lambda conn: len(partitions.create_ahead(conn)))
        strays = self._step(epoch, "count_default_partitions", lambda conn: sum(partitions.default_rows(conn).values()))
        if strays:
            _log.error("rows_outside_of_every_month", rows=strays)  # an api server has a wrong clock
        dropped, jobs = self._months(epoch)
        expired = self._until_done(epoch, "expire_files", self._expire_files)
        collected = self._until_done(epoch, "collect_packs", self._collect_packs)
        exported = self._until_done(epoch, "forget_exports", self._forget_exports)
        self._until_done(epoch, "forget_runs", self._forget_runs)
        self._until_done(epoch, "forget_schedules", schedules.forget)
        keys = self._until_done(epoch, "expire_idempotency_keys", idempotency.expire)
        events = self._until_done(epoch, "expire_webhook_events", self._expire_events)
        self._step(epoch, "forget_webhook_endpoints", webhook_retention.forget_endpoints)
        self._step(epoch, "forget_workers", lambda conn: workers.expire(conn, older_than=_FORGET_WORKERS))
        return Retained(
            partitions_created=created,
            partitions_dropped=dropped,
            jobs=jobs,
            files=expired,
            packs=collected,
            exports=exported,
            orphans=self._orphans(epoch, PACK_PREFIX, packs.unknown) + self._orphans(epoch, FILE_PREFIX, files.unused),
            idempotency_keys=keys,
            events=events,
        )

    def _step(self, epoch: Epoch, name: str, work: Callable[[Connection], int]) -> int:
        try:
            with self._database.begin() as conn:
                leader.check(conn, epoch)
                return work(conn)
        except ServiceUnavailable as error:
            _log.warning("retention_step_postponed", step=name, error=error.message)
            return 0

    def _until_done(self, epoch: Epoch, name: str, work: Callable[[Connection], int]) -> int:
        total = 0
        while done := self._step(epoch, name, work):
            total += done
        return total

    def _months(self, epoch: Epoch) -> tuple[int, int]:
        dropped = jobs = 0
        old: list[Partition] = []
        busy: set[Partition] = set()

        def look(conn: Connection) -> int:
            oldest = retention.now(conn) - self._age
            old.extend(month for month in partitions.list_months(conn) if month.end <= oldest)
            busy.update(month for month in old if retention.unfinished_jobs(conn, month.lower, month.upper))
            return len(old)

        if not self._step(epoch, "list_months", look):
            return 0, 0
        for month in sorted(busy, key=lambda month: month.name):
            _log.error("old_month_has_unfinished_jobs", partition=month.name)
        for month in old:
            if month in busy:
                continue

            def forget(conn: Connection, month: Partition = month) -> int:
                return retention.forget_jobs(conn, month.lower, month.upper)

            def drop(conn: Connection, month: Partition = month) -> int:
                if retention.unfinished_jobs(conn, month.lower, month.upper):
                    return 0
                partitions.drop(conn, month)
                return 1

            jobs += self._until_done(epoch, "forget_jobs", forget)
            if self._step(epoch, "drop_partition", drop):
                dropped += 1
                _log.info("partition_dropped", partition=month.name)
        return dropped, jobs

    def _forget_runs(self, conn: Connection) -> int:
        return schedule_runs.expire(conn, before=retention.now(conn) - self._age)

    def _expire_files(self, conn: Connection) -> int:
        gone = files.expire(conn)
        for key in files.unused(conn, [file.blob_key for file in gone]):
            self._delete_blob(key)
        return len(gone)

    def _expire_events(self, conn: Connection) -> int:
        return webhook_retention.expire_events(conn, older_than=self._age.total_seconds())

    def _collect_packs(self, conn: Connection) -> int:
        keys = packs.collect(conn, older_than=self._pack_age)
        for key in keys:
            self._delete_blob(key)
        return len(keys)

    def _forget_exports(self, conn: Connection) -> int:
        """One export a transaction: its objects in our own store (a tenant's bucket is the tenant's), then its row.

        A large one takes several: what was deleted is not listed again, and the row goes with the last object.
        """
        for export in exports.old(conn, days=self._age.days, limit=1):
            if export.options.url is None:
                folder = folder_of(export.tenant_id, export.job_id, export.export_id, own=True)
                found = [blob.key for blob in islice(self._list_blobs(folder), _EXPORTED_A_STEP)]
                for key in found:
                    self._delete_blob(key)
                if len(found) == _EXPORTED_A_STEP:
                    return 1
            exports.forget(conn, [export.export_id])
            return 1
        return 0

    def _orphans(
        self, epoch: Epoch, prefix: str, unknown_of: Callable[[Connection, Sequence[str]], Sequence[str]]
    ) -> int:
        """Blobs whose writer died before it recorded them; a bounded walk that the next run goes on with."""
        before = datetime.now(UTC) - timedelta(seconds=self._pack_age)
        found: list[str] = []
        seen = 0
        try:
            for blob in self._list_blobs(prefix, start_after=self._orphans_after[prefix]):
                seen += 1
                self._orphans_after[prefix] = blob.key
                if blob.modified is not None and blob.modified < before:
                    found.append(blob.key)
                if seen == _ORPHANS_A_RUN:
                    break
            else:
                self._orphans_after[prefix] = ""
            unknown: list[str] = []
            with self._database.begin() as conn:
                leader.check(conn, epoch)
                unknown = list(unknown_of(conn, found))
            for key in unknown:
                self._delete_blob(key)
        except ServiceUnavailable as error:
            _log.warning("retention_step_postponed", step="collect_orphans", error=error.message)
            return 0
        return len(unknown)
