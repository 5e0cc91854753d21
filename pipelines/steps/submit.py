"""SUBMIT: a request becomes one committed row, or an error that says what to change.

Everything that can be told without opening a medium is told here: the kind, its parameters, the form of the source,
whether the tenant may read it, whether an uploaded file exists, the quota. What only a fetch can tell (a missing
object, a corrupt page) becomes a failed item, so that one bad medium never refuses its neighbours.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection

from pipelines.control.exports import request as exporting
from pipelines.control.exports.target import ExportRules
from pipelines.jobs.errors import BatchsightError, InvalidParameter, MediaNotFound, QuotaExceeded, RequestTooLarge
from pipelines.jobs.exports import ExportOptions
from pipelines.jobs.ids import uuid7
from pipelines.jobs.models import JobPriority, JobSpec
from pipelines.kinds import registry
from pipelines.kinds.base import MediaClass
from pipelines.kinds.registry import AnyKind
from pipelines.media.globs import parse_s3
from pipelines.settings import Settings
from pipelines.steps.access import AccessRules, S3Address, UploadAddress, allow, parse_url
from pipelines.steps.plan_at_once import plan_at_once
from pipelines.store import files, jobs, tenants, webhook_endpoints
from pipelines.store.tenants import Tenant

_LOOKUPS = 1_000


@dataclass(frozen=True, kw_only=True)
class SubmitRules:
    """The installation's own rules."""

    allowed_buckets: tuple[str, ...]
    https_sources: bool
    max_items: int
    exports: ExportRules

    def for_tenant(self, tenant: Tenant) -> AccessRules:
        """What this tenant may read."""
        buckets = self.allowed_buckets if tenant.allowed_buckets is None else tenant.allowed_buckets
        return AccessRules(buckets=buckets, https=self.https_sources)


def submit_rules(settings: Settings) -> SubmitRules:
    """The rules of this installation: alike for requests and for schedules."""
    return SubmitRules(
        allowed_buckets=settings.allowed_buckets,
        https_sources=settings.https_sources,
        max_items=settings.max_items_per_request,
        exports=ExportRules(buckets=settings.export_buckets, blob_url=settings.blob_url),
    )


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What a client asks for. `source` is normalised: uploaded files are `upload:<uuid>` (in `file_ids`, the UUID)."""

    kind: str
    parameters: Mapping[str, Any]
    source: Mapping[str, Any]
    priority: JobPriority = JobPriority.NORMAL
    metadata: Mapping[str, Any] = field(default_factory=dict)
    deadline_at: datetime | None = None
    export: ExportOptions | None = None
    webhook_endpoint_id: uuid.UUID | None = None


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """A job that stands once the transaction is committed. `planned`: its items stand with it; else it is `queued`."""

    job_id: uuid.UUID
    planned: bool


def submit(
    conn: Connection, tenant: Tenant, submission: Submission, rules: SubmitRules, *, job_id: uuid.UUID | None = None
) -> Accepted:
    """Check and insert; the caller's transaction commits. The new job (its id is `job_id`, where the caller chose one).

    Raises `UnknownKind`, `InvalidParameter`, `SourceForbidden`, `SourceDisabled`, `MediaNotFound`, `RequestTooLarge`,
    `QuotaExceeded` or `ExportForbidden`, each naming the field in `param`.
    """
    kind, parameters = check(conn, tenant, submission, rules)
    new = jobs.NewJob(
        job_id=job_id or uuid7(),
        tenant_id=tenant.tenant_id,
        kind=kind.name,
        parameters=parameters,
        source=dict(submission.source),
        priority=submission.priority,
        deadline_at=submission.deadline_at,
        metadata=dict(submission.metadata),
        webhook_endpoint_id=submission.webhook_endpoint_id,
    )
    spec = spec_of(tenant, submission, parameters, job_id=new.job_id)
    documents = plan_at_once(conn, spec, rules.for_tenant(tenant))
    if documents:
        jobs.insert_planned(conn, new, documents)
    else:
        jobs.insert_job(conn, new)
    if submission.export is not None:
        with _at("export", keep=True):
            exporting.request(conn, tenant, new.job_id, submission.export, rules.exports)
    return Accepted(job_id=new.job_id, planned=bool(documents))


def spec_of(tenant: Tenant, submission: Submission, parameters: Mapping[str, Any], *, job_id: uuid.UUID) -> JobSpec:
    """What PLAN is told of a submission that was checked; `parameters` are those that `check` completed."""
    return JobSpec(
        job_id=job_id,
        tenant_id=tenant.tenant_id,
        kind=submission.kind,
        parameters=parameters,
        source=submission.source,
        priority=submission.priority,
        deadline_at=submission.deadline_at,
        allowed_buckets=tenant.allowed_buckets,
    )


def check(
    conn: Connection, tenant: Tenant, submission: Submission, rules: SubmitRules, *, quota: bool = True
) -> tuple[AnyKind, dict[str, Any]]:
    """The kind, and the parameters completed with its defaults; raises what `submit` raises. Stores nothing.

    Without `quota`, what is used up now is no matter: for a job that is made later.
    """
    kind = registry.get(submission.kind)
    parameters = kind.validate(submission.parameters)
    if submission.deadline_at is not None and submission.deadline_at <= datetime.now(UTC):
        raise InvalidParameter("deadline_at lies in the past; leave it out or choose a later time", param="deadline_at")
    _check_webhook(conn, tenant, submission.webhook_endpoint_id)
    count = _check_source(conn, kind, tenant, submission.source, parameters, rules)
    if quota:
        _check_quota(conn, tenant, count)
    if submission.export is not None:
        with _at("export", keep=True):
            exporting.check(tenant, submission.export, rules.exports)
    return kind, parameters


def _check_source(
    conn: Connection,
    kind: AnyKind,
    tenant: Tenant,
    source: Mapping[str, Any],
    parameters: Mapping[str, Any],
    rules: SubmitRules,
) -> int:
    """How many items are known already."""
    access = rules.for_tenant(tenant)
    needs_media = MediaClass.NONE not in kind.media
    match source["type"]:
        case "none":
            if needs_media:
                raise InvalidParameter(
                    f"{kind.name} needs media; name them in source (media, prefix, manifest or files)", param="source"
                )
            return 1
        case "prefix":
            with _at("source.url"):
                pattern = parse_s3(str(source["url"]))
                allow(S3Address(bucket=pattern.bucket, key=pattern.prefix), access)
            return 1
        case "manifest":
            _check_manifest(conn, tenant, source, access)
            return 1
        case "batch":
            _check_urls(conn, tenant, [("input_file_id", str(source["url"]))], access)
            return int(source["lines"])
        case "files":
            entries = [(f"source.file_ids.{n}", f"upload:{entry}") for n, entry in enumerate(source["file_ids"])]
        case "media":
            entries = [(f"source.media.{n}", str(entry["url"])) for n, entry in enumerate(source["media"])]
        case other:
            raise InvalidParameter(f"there is no source type {other!r}", param="source.type")
    if len(entries) > rules.max_items:
        raise RequestTooLarge(
            f"the request names {len(entries)} media; {rules.max_items} are taken at once: use a manifest or a prefix",
            param="source",
        )
    _check_urls(conn, tenant, entries, access)
    for index, entry in enumerate(source.get("media", ())):
        if entry.get("parameters"):
            with _at(f"source.media.{index}", keep=True):
                kind.validate({**parameters, **entry["parameters"]})
    return 1 if kind.many_media else len(entries)


def _check_manifest(conn: Connection, tenant: Tenant, source: Mapping[str, Any], access: AccessRules) -> None:
    url = str(source.get("url", ""))
    if url.startswith("http"):
        raise InvalidParameter("a manifest must lie in S3 or be uploaded", param="source.url")
    if url:
        _check_urls(conn, tenant, [("source.url", url)], access)


def _check_urls(conn: Connection, tenant: Tenant, entries: Sequence[tuple[str, str]], access: AccessRules) -> None:
    uploads: list[tuple[str, uuid.UUID]] = []
    for param, url in entries:
        with _at(param):
            address = parse_url(url)
            allow(address, access)
            if isinstance(address, S3Address) and not address.key:
                raise InvalidParameter(f"{url} names a bucket, not an object; use a prefix source", param=param)
            if isinstance(address, UploadAddress):
                uploads.append((param, address.file_id))
    for start in range(0, len(uploads), _LOOKUPS):
        part = uploads[start : start + _LOOKUPS]
        found = files.existing(conn, tenant.tenant_id, [file_id for _, file_id in part])
        for param, file_id in part:
            if file_id not in found:
                raise MediaNotFound(f"there is no uploaded file file-{file_id.hex}; upload it first", param=param)


def _check_webhook(conn: Connection, tenant: Tenant, endpoint_id: uuid.UUID | None) -> None:
    if endpoint_id is None:
        return
    # A disabled one is taken: it may be enabled before the job ends, and a receiver's 410 must not stop a schedule.
    if webhook_endpoints.get(conn, tenant.tenant_id, endpoint_id) is None:
        raise InvalidParameter("there is no such webhook endpoint; create it first", param="webhook.endpoint_id")


def _check_quota(conn: Connection, tenant: Tenant, count: int) -> None:
    active = tenants.active_items(conn, tenant.tenant_id)
    if active + count > tenant.max_active_items:
        raise QuotaExceeded(
            f"{active} items are waiting or running, and {tenant.max_active_items} are allowed at once; "
            "wait for some to end, or cancel a job"
        )


@contextmanager
def _at(param: str, *, keep: bool = False) -> Iterator[None]:
    """Say where in the request an error is; `keep`: the error's own place stands behind it."""
    try:
        yield
    except BatchsightError as error:
        error.param = f"{param}.{error.param}" if keep and error.param else param
        raise
