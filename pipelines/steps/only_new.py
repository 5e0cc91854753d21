"""Only what is new: a scheduled job leaves out the objects that an earlier run of its schedule has done.

Before its first batch a planner writes down what the earlier jobs have done so far, in case the leader has not come to
it yet (`record_earlier`); then each batch of the listing is one question to an index (`leave_out_done`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from sqlalchemy import Connection

from pipelines.jobs.models import JobSpec
from pipelines.store import schedule_objects
from pipelines.store.jobs import PlannedDocument, SomePages
from pipelines.store.session import Database


def record_earlier(database: Database, spec: JobSpec, keep: Callable[[Connection], bool]) -> bool:
    """Write down what the schedule's other jobs have done, window by window; `keep` holds the plan's lease meanwhile.

    False where the lease was lost. Nothing to do for a job that takes everything.
    """
    if spec.only_new_of is None:
        return True
    with database.begin() as conn:
        jobs = schedule_objects.unrecorded_of(conn, spec.only_new_of, but=spec.job_id)
    for job in jobs:
        start: int | None = 0
        while start is not None:
            with database.begin() as conn:
                if not keep(conn):
                    return False
                start = schedule_objects.record(conn, job, start)
    return True


def leave_out_done(database: Database, spec: JobSpec, documents: list[PlannedDocument]) -> list[PlannedDocument]:
    """The documents that are new in this version; of one that was done in part, the pages that were not."""
    if spec.only_new_of is None:
        return documents
    # Without a version nothing can be known to be the same: such an object is done each time.
    asked = [document for document in documents if len(document.media) == 1 and document.media[0].version]
    with database.begin() as conn:
        known = schedule_objects.known(conn, spec.only_new_of, [document.media[0] for document in asked])
    done = {id(document): known[place] for place, document in enumerate(asked) if place in known}
    kept = []
    for document in documents:
        before = done.get(id(document))
        if before is None:
            kept.append(document)
        elif before.missing and before.pages is not None:
            kept.append(replace(document, items=SomePages(pages=before.missing, of=before.pages)))
    return kept
