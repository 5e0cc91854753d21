"""Asking for an export, with a job or after it."""

from __future__ import annotations

import uuid

from sqlalchemy import Connection

from pipelines.control.exports.target import ExportRules, target_of
from pipelines.jobs.errors import Conflict, NotFound, QuotaExceeded
from pipelines.jobs.exports import ExportOptions
from pipelines.store import exports
from pipelines.store.exports import Export
from pipelines.store.tenants import Tenant

MOST = 20
"""Exports of one job: each may hold as much as all its results."""


def request(conn: Connection, tenant: Tenant, job_id: uuid.UUID, options: ExportOptions, rules: ExportRules) -> Export:
    """Insert it; the caller's transaction commits. It starts when the job ends, or at once where it has ended.

    Raises `InvalidParameter`, `ExportForbidden`, `QuotaExceeded`, or `NotFound` where the tenant has no such job.
    """
    check(tenant, options, rules)
    if exports.count(conn, tenant.tenant_id, job_id) >= MOST:
        raise QuotaExceeded(f"the job has {MOST} exports already; use one of them")
    made = exports.insert(conn, tenant.tenant_id, job_id, options)
    if made is None:
        raise NotFound("there is no such job")
    return made


def check(tenant: Tenant, options: ExportOptions, rules: ExportRules) -> None:
    """Raise `InvalidParameter` or `ExportForbidden` where this tenant cannot have this export."""
    options.check()
    if options.url is not None:
        target_of(options.url, tenant_buckets=tenant.export_buckets, rules=rules)


def cancel(conn: Connection, tenant_id: uuid.UUID, job_id: uuid.UUID, export_id: uuid.UUID) -> Export:
    """End an export now. What it has written stays, without a manifest. Raises `NotFound`, or `Conflict`."""
    cancelled = exports.cancel(conn, tenant_id, job_id, export_id)
    found = exports.get(conn, tenant_id, job_id, export_id)
    if found is None:
        raise NotFound("the job has no such export")
    if not cancelled:
        raise Conflict(f"the export has ended already ({found.state})")
    return found
