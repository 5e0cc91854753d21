"""Tenants and keys, for the operator: keys with the scope `admin`."""

from __future__ import annotations

import uuid
from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy import Connection

from api.dependencies import Admin, ServicesDep
from api.documentation import PROBLEMS, problems
from api.jsonbody import StrictRoute
from api.schemas import admin as schema
from pipelines.jobs.errors import NotFound
from pipelines.store import tenants

router = APIRouter(prefix="/v1/admin", tags=["admin"], route_class=StrictRoute, responses=PROBLEMS)

TenantId = Annotated[uuid.UUID, Query(description="the keys' tenant")]


@router.post(
    "/tenants", operation_id="createTenant", status_code=201, responses=problems(409), summary="Create a tenant"
)
async def create_tenant(body: schema.TenantRequest, services: ServicesDep, caller: Admin) -> schema.Tenant:
    """A name of its own, quotas, and the buckets it may read and export to."""
    del caller
    made = await services.transact(
        lambda conn: tenants.create_tenant(
            conn,
            body.name,
            weight=body.weight,
            allowed_buckets=body.allowed_buckets,
            export_buckets=body.export_buckets,
            max_active_items=body.max_active_items,
            max_stored_bytes=body.max_stored_bytes,
            requests_per_minute=body.requests_per_minute,
        )
    )
    return _tenant(made)


@router.get("/tenants", operation_id="listTenants", summary="List all tenants")
async def list_tenants(services: ServicesDep, caller: Admin) -> schema.TenantList:
    """Oldest first."""
    del caller
    return schema.TenantList(data=[_tenant(found) for found in await services.transact(tenants.list_tenants)])


@router.post("/keys", operation_id="createKey", status_code=201, responses=problems(404), summary="Create an API key")
async def create_key(body: schema.KeyRequest, services: ServicesDep, caller: Admin) -> schema.NewKey:
    """The key is shown this once. Make the new one before you revoke the old one."""
    del caller
    pepper = services.settings.api_key_pepper.get_secret_value()
    made = await services.transact(
        lambda conn: tenants.create_key(
            conn, body.tenant_id, name=body.name, scopes=body.scopes, expires_at=body.expires_at, pepper=pepper
        )
    )
    return schema.NewKey(id=made.key_id, prefix=made.prefix, key=made.secret)


@router.get("/keys", operation_id="listKeys", summary="List a tenant's keys")
async def list_keys(tenant_id: TenantId, services: ServicesDep, caller: Admin) -> schema.KeyList:
    """Without their secrets; revoked ones too."""
    del caller
    found = await services.transact(lambda conn: tenants.list_keys(conn, tenant_id))
    return schema.KeyList(
        data=[
            schema.Key(
                id=key.key_id,
                name=key.name,
                prefix=key.prefix,
                scopes=list(key.scopes),
                created_at=key.created_at,
                expires_at=key.expires_at,
                revoked_at=key.revoked_at,
            )
            for key in found
        ]
    )


@router.delete("/keys/{key_id}", operation_id="revokeKey", responses=problems(404), summary="Revoke an API key")
async def revoke_key(key_id: uuid.UUID, tenant_id: TenantId, services: ServicesDep, caller: Admin) -> schema.Revoked:
    """It opens nothing a few seconds later, on every replica."""
    del caller

    def work(conn: Connection) -> None:
        if not tenants.revoke_key(conn, tenant_id, key_id):
            raise NotFound("the tenant has no such active key")

    await services.transact(work)
    return schema.Revoked(id=key_id)


def _tenant(found: tenants.Tenant) -> schema.Tenant:
    return schema.Tenant(
        id=found.tenant_id,
        name=found.name,
        weight=found.weight,
        allowed_buckets=None if found.allowed_buckets is None else list(found.allowed_buckets),
        export_buckets=None if found.export_buckets is None else list(found.export_buckets),
        max_active_items=found.max_active_items,
        max_stored_bytes=found.max_stored_bytes,
        stored_bytes=found.stored_bytes,
        requests_per_minute=found.requests_per_minute,
        created_at=found.created_at,
        disabled_at=found.disabled_at,
    )
