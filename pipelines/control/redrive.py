"""Redrive: the failed items of a job run again, in a job of their own. The parent never changes."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from sqlalchemy import Connection

from pipelines.jobs.errors import NotFound, NothingToRedrive
from pipelines.jobs.ids import uuid7
from pipelines.store.redrive import insert_child


def create(
    conn: Connection, tenant_id: uuid.UUID, job_id: uuid.UUID, *, codes: Sequence[str] | None = None
) -> uuid.UUID:
    """Make a child of the failed items (with one of `codes`, or all); its id. The caller's transaction commits.

    The parent may still be running: what has failed so far is taken. Raises `NotFound`, `NothingToRedrive`.
    """
    child_id = uuid7()
    copied = insert_child(conn, tenant_id=tenant_id, parent_id=job_id, child_id=child_id, codes=codes)
    if copied is None:
        raise NotFound("there is no job of this id")
    if not copied.documents:
        which = "" if codes is None else f" with {'the code' if len(codes) == 1 else 'a code of'} {', '.join(codes)}"
        raise NothingToRedrive(f"the job has no failed item{which} that could run again")
    return child_id
