"""A short plan is made where the job is submitted: a few named media need no listing, and so no worker.

For an interactive item a message to a cpu worker, the claim and two transactions of its own take longer than the plan
itself. Everything else is left to PLAN: what has to be listed or read, what is long, and what would fail in part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from sqlalchemy import Connection

from pipelines.jobs.errors import BatchsightError, ConfigurationError
from pipelines.jobs.models import JobPriority, JobSpec
from pipelines.steps.access import AccessRules, UploadAddress
from pipelines.steps.plan import PlanTools, batches
from pipelines.steps.sources import StoredUpload
from pipelines.store import files
from pipelines.store.jobs import NeedsPaging, PlannedDocument, Single

MOST_MEDIA = 16


def plan_at_once(conn: Connection, spec: JobSpec, access: AccessRules) -> tuple[PlannedDocument, ...]:
    """The documents of an interactive job that names up to 16 media, read in `conn`'s transaction; else none.

    None as well where one of them cannot be used: what ends a job is written by PLAN alone.
    """
    if spec.priority is not JobPriority.INTERACTIVE or not _named(spec.source):
        return ()

    def find_upload(spec: JobSpec, address: UploadAddress) -> StoredUpload | None:
        return files.get(conn, spec.tenant_id, address.file_id)

    tools = PlanTools(objects=None, open_manifest=_opens_nothing, find_upload=find_upload, rules=lambda _: access)
    try:
        documents = tuple(document for batch in batches(spec, None, tools) for document in batch.documents)
    except BatchsightError:
        return ()  # PLAN meets it again, and writes it down
    return documents if all(isinstance(found.items, Single | NeedsPaging) for found in documents) else ()


def _named(source: Mapping[str, Any]) -> bool:
    match source["type"]:
        case "none":
            return True
        case "media":
            return len(source["media"]) <= MOST_MEDIA
        case "files":
            return len(source["file_ids"]) <= MOST_MEDIA
    return False


def _opens_nothing(spec: JobSpec, source: Mapping[str, Any]) -> AbstractContextManager[Iterable[bytes]]:
    raise ConfigurationError(f"the job {spec.job_id} has a manifest in its {source['type']}: that is PLAN's work")
