"""A tenant with schedules, a leader over a clock that the test moves, and jobs that end as the test says."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from pipelines.control import schedule
from pipelines.control.exports.target import ExportRules
from pipelines.control.firing import Fired, Scheduler
from pipelines.control.template import JobTemplate
from pipelines.jobs.models import MediaRef
from pipelines.jobs.outcomes import Failed
from pipelines.jobs.schedules import RunState, Schedule, ScheduleRules, ScheduleRun
from pipelines.steps.only_new import leave_out_done, record_earlier
from pipelines.steps.submit import Submission, SubmitRules
from pipelines.store import documents, jobs, leader, progress, schedule_runs, tenants
from pipelines.store.jobs import NeedsPaging, PlannedDocument, Single
from pipelines.store.leader import Epoch, Terms
from pipelines.store.tenants import Tenant
from tests.integration.store.world import LEASE, World, prepared

EXPORTS = ExportRules(buckets=("results",), blob_url="file:///blobs")
RULES = SubmitRules(allowed_buckets=("scans",), https_sources=False, max_items=1000, exports=EXPORTS)
PREFIX = {"type": "prefix", "url": "s3://scans/{date}/"}


class Scheduling:
    """`now` is the leader's clock; it starts where PostgreSQL's stands, at a full hour."""

    def __init__(self, world: World, **quotas: Any) -> None:
        self.world, self.database = world, world.database
        tenant_id = world.tenant(**quotas)
        with self.database.begin() as conn:
            found = tenants.get_tenant(conn, tenant_id)
            epoch = leader.acquire(conn, "test", Terms(lease=600, grace=60, gap=600))
        assert found is not None
        assert epoch is not None
        self.tenant: Tenant = found
        self.epoch: Epoch = epoch
        self.now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
        self.scheduler = Scheduler(self.database, RULES)

    def make(
        self, cron: str = "0 * * * *", *, source: Mapping[str, Any] = PREFIX, name: str | None = None, **rules: Any
    ) -> Schedule:
        """A schedule that is due from `now` on."""
        submission = Submission(kind="ocr", parameters={}, source=source)
        rules.setdefault("only_new", source["type"] == "prefix")
        with self.database.begin() as conn:
            made = schedule.create(
                conn,
                self.tenant,
                name=name or f"schedule {uuid.uuid4()}",
                rules=ScheduleRules(cron=cron, timezone=rules.pop("timezone", "UTC"), **rules),
                template=JobTemplate(submission=submission),
                paused=False,
                submit_rules=RULES,
                most=100,
            )
        self.due_at(made.schedule_id, self.now)
        return made

    def due_at(self, schedule_id: uuid.UUID, time: datetime) -> None:
        self.world.rows("UPDATE schedules SET next_at = %(t)s WHERE id = %(s)s RETURNING 1", t=time, s=schedule_id)

    def fire(self, **later: float) -> Fired:
        """Move the clock on, then do what the leader does each second."""
        self.now += timedelta(**later)
        return self.scheduler.fire(self.epoch, now=self.now)

    def runs(self, made: Schedule) -> list[ScheduleRun]:
        """The history, the oldest first."""
        with self.database.begin() as conn:
            found = schedule_runs.list_runs(conn, self.tenant.tenant_id, made.schedule_id, limit=1000)
        return sorted(found, key=lambda run: (run.scheduled_at, run.run_id))

    def states(self, made: Schedule) -> list[RunState]:
        return [run.state for run in self.runs(made)]

    def job(self, made: Schedule) -> uuid.UUID:
        """The newest run's job."""
        found = [run.job_id for run in self.runs(made) if run.job_id is not None][-1]
        assert found is not None
        return found

    def plan(self, job_id: uuid.UUID, listed: Mapping[str, str], *, window: int = 3) -> list[str]:
        """Plan a listing of key → version as a worker does, in batches; the names of what is left to do.

        Keys that end in `.pdf` are to be paged.
        """
        with self.database.begin() as conn:
            spec = jobs.get_spec(conn, job_id)
            lease = jobs.claim_plan(conn, job_id, worker="w", lease=LEASE)
        assert spec is not None
        assert lease is not None
        assert record_earlier(self.database, spec, lambda _conn: True)
        planned = [
            PlannedDocument(
                name=key,
                media=(MediaRef(url=f"s3://scans/{key}", version=version or None),),
                items=NeedsPaging() if key.endswith(".pdf") else Single(),
            )
            for key, version in listed.items()
        ]
        names: list[str] = []
        batches = [planned[start : start + window] for start in range(0, len(planned), window)] or [[]]
        for number, batch in enumerate(batches, 1):
            kept = leave_out_done(self.database, spec, batch)
            names += [document.name for document in kept]
            with self.database.begin() as conn:
                lease = jobs.append_plan(conn, lease, documents=kept, cursor={}, done=number == len(batches))
            assert lease is not None
        return names

    def page(self, job_id: uuid.UUID, pages: int) -> None:
        """Count the pages of every document that waits for it."""
        docs = [
            row[0]
            for row in self.world.rows(
                "SELECT doc FROM documents WHERE job_id = %(j)s AND state = 'pending' ORDER BY doc", j=job_id
            )
        ]
        for claimed in self.world.claim_documents(job_id, docs):
            with self.database.begin() as conn:
                assert documents.complete_document(conn, claimed, pages=pages)

    def finish(self, job_id: uuid.UUID, *, failing: Sequence[tuple[str, int | None]] = ()) -> None:
        """End every waiting item, `failing` ones (name, page) badly, then the job."""
        rows = self.world.rows(
            "SELECT i.seq, d.name, i.page FROM items i JOIN documents d USING (job_id, doc) "
            "WHERE i.job_id = %(j)s AND i.state = 'pending' ORDER BY i.seq",
            j=job_id,
        )
        bad = [row[0] for row in rows if (row[1], row[2]) in failing]
        good = [row[0] for row in rows if row[0] not in bad]
        self.world.complete(*((item, Failed(code="x", message="x")) for item in self.world.claim(job_id, bad)))
        if good:
            self.world.complete(*((item, prepared()) for item in self.world.claim(job_id, good)))
            self.world.succeed(job_id, good, ready=True)
        with self.database.begin() as conn:
            progress.fold(conn)
        with self.database.begin() as conn:
            progress.finalise(conn, job_id)

    def run(
        self,
        made: Schedule,
        listed: Mapping[str, str],
        *,
        pages: int = 3,
        failing: Sequence[tuple[str, int | None]] = (),
    ) -> list[str]:
        """Fire, plan, page, end, and an hour goes by. What was done, as names, with pages where there are some."""
        assert self.fire().runs == {RunState.FIRED: 1}
        job_id = self.job(made)
        self.plan(job_id, listed)
        self.page(job_id, pages)
        done = self.items(job_id)
        self.finish(job_id, failing=failing)
        self.now += timedelta(hours=1)
        return done

    def items(self, job_id: uuid.UUID) -> list[str]:
        """name, or name:page, of every item of a job."""
        return [
            row[0] if row[1] is None else f"{row[0]}:{row[1]}"
            for row in self.world.rows(
                "SELECT d.name, i.page FROM items i JOIN documents d USING (job_id, doc) "
                "WHERE i.job_id = %(j)s ORDER BY d.name, i.page",
                j=job_id,
            )
        ]
