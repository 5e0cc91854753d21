"""The answer to a dry run."""

from __future__ import annotations

from sqlalchemy import Connection

from api.schemas.estimates import Basis, Estimate, Range
from api.services import Services
from pipelines.jobs.ids import uuid7
from pipelines.jobs.models import JobSpec
from pipelines.steps.estimate import BATCH, Expected, Listed, expected, listed, whole
from pipelines.steps.plan import PlanTools
from pipelines.steps.plan_tools import manifests_of, uploads_of
from pipelines.steps.submit import Submission, check, spec_of
from pipelines.store.tenants import Principal


async def estimated(services: Services, caller: Principal, submission: Submission) -> Estimate:
    """Check as a submission is checked, list within the bounds, look at what equal jobs have cost. Stores nothing."""

    def checked(conn: Connection) -> JobSpec:
        _, parameters = check(conn, caller.tenant, submission, services.submit_rules)
        return spec_of(caller.tenant, submission, parameters, job_id=uuid7())

    spec = await services.transact(checked)
    access = services.submit_rules.for_tenant(caller.tenant)
    find_upload = uploads_of(services.database)
    tools = PlanTools(
        objects=services.objects,
        open_manifest=manifests_of(services.blobs, services.objects, find_upload, lambda _: access),
        find_upload=find_upload,
        rules=lambda _: access,
        max_items=services.settings.max_planned_items,
        batch=BATCH,
    )
    found = await services.in_thread(lambda: listed(spec, tools))
    each = await services.transact(lambda conn: expected(conn, spec, found))
    return _shown(spec, found, each, gpu_second_cost=services.settings.gpu_second_cost)


def _shown(spec: JobSpec, found: Listed, each: Expected, *, gpu_second_cost: float) -> Estimate:
    usable = found.documents - found.unusable
    items = usable - found.to_page + found.to_page * each.items_a_document
    known = not found.to_page

    def ranged(of_one: float, most: int) -> Range:
        """Never more than the parameters allow, where that is known."""
        value = whole(of_one * items)
        return Range(expected=min(value, most) if known else value, most=most if known else None)

    busy = None if each.device_seconds is None else each.device_seconds * items
    return Estimate(
        kind=spec.kind,
        complete=found.complete,
        documents=found.documents,
        documents_to_page=found.to_page,
        unusable=found.unusable,
        skipped=found.skipped,
        bytes=found.bytes if found.sized else None,
        items=Range(expected=whole(items), most=usable if known else None),
        tiles=ranged(each.tiles, found.most.tiles),
        prompt_tokens=ranged(each.prompt_tokens, found.most.prompt_tokens),
        completion_tokens=ranged(each.completion_tokens, found.most.completion_tokens),
        device_seconds=None if busy is None else round(busy, 3),
        seconds=None if busy is None or not each.engines else round(busy / each.engines, 1),
        cost=None if busy is None else round(busy * gpu_second_cost, 6),
        basis=Basis(
            of=each.of,
            jobs=each.jobs,
            results=each.results,
            items_a_document=round(each.items_a_document, 2),
            engines=each.engines,
        ),
    )
