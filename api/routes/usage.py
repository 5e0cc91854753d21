"""What a tenant has spent."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy import Connection

from api import views
from api.dependencies import JobsRead, ServicesDep
from api.documentation import PROBLEMS
from api.schemas.admin import UsageReport
from api.schemas.base import Moment
from pipelines.control.usage import Spent, spent
from pipelines.store import tenants
from pipelines.store.tenants import Tenant

router = APIRouter(prefix="/v1/usage", tags=["usage"], responses=PROBLEMS)


@router.get("", operation_id="getUsage", summary="Add up what was spent")
async def get_usage(
    services: ServicesDep,
    caller: JobsRead,
    created_after: Annotated[Moment | None, Query(description="jobs from this time on")] = None,
    created_before: Annotated[Moment | None, Query(description="jobs before this time")] = None,
) -> UsageReport:
    """Of all jobs created in a time."""

    def work(conn: Connection) -> tuple[Spent, int, Tenant | None]:
        return (
            spent(conn, caller.tenant_id, since=created_after, until=created_before),
            tenants.active_items(conn, caller.tenant_id),
            tenants.get_tenant(conn, caller.tenant_id),
        )

    found, active, tenant = await services.transact(work)
    counted = views.usage(dict(found.counters), services.settings.gpu_second_cost)
    return UsageReport(
        created_from=created_after,
        created_until=created_before,
        jobs=found.jobs,
        stored_bytes=tenant.stored_bytes if tenant else 0,
        active_items=active,
        **counted.model_dump(),
    )
