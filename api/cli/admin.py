"""Commands for the operator: tenants and keys, straight in the database, so that the first key can be made."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated

import typer
from sqlalchemy import Connection

from api.auth import SCOPES, check_pepper
from api.cli import output
from api.cli.jobs import AsJson
from pipelines.jobs.errors import NotFound
from pipelines.settings import Settings
from pipelines.store import tenants
from pipelines.store.session import Database

app = typer.Typer(help="Tenants and API keys (needs DATABASE_URL).", no_args_is_help=True)
tenant_app = typer.Typer(help="Tenants.", no_args_is_help=True)
key_app = typer.Typer(help="API keys (needs BATCHSIGHT_API_KEY_PEPPER).", no_args_is_help=True)
app.add_typer(tenant_app, name="tenant")
app.add_typer(key_app, name="key")

_DEFAULT_SCOPES = [scope for scope in SCOPES if scope != "admin"]

TenantName = Annotated[str, typer.Argument(metavar="TENANT", help="The tenant's name.")]


@tenant_app.command("create")
def create_tenant(
    name: TenantName,
    *,
    weight: Annotated[float, typer.Option(min=0.001, help="Its share against other tenants.")] = 1.0,
    bucket: Annotated[
        list[str] | None, typer.Option(help="`bucket` or `bucket/prefix` it may read; default: the installation's.")
    ] = None,
    export_bucket: Annotated[
        list[str] | None,
        typer.Option(help="`bucket` or `bucket/prefix` it may export to; default: the installation's."),
    ] = None,
    max_active_items: Annotated[int | None, typer.Option(min=0, help="Items waiting or running at once.")] = None,
    max_stored_bytes: Annotated[int | None, typer.Option(min=0, help="Bytes of uploaded files.")] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="Its rate.")] = None,
    as_json: AsJson = False,
) -> None:
    """Create a tenant; its id is written."""
    with _transaction() as (conn, _):
        tenant = tenants.create_tenant(
            conn,
            name,
            weight=weight,
            allowed_buckets=bucket or None,
            export_buckets=export_bucket or None,
            max_active_items=max_active_items,
            max_stored_bytes=max_stored_bytes,
            requests_per_minute=requests_per_minute,
        )
    if as_json:
        output.write_json({**output.plain(tenant), "tenant_id": str(tenant.tenant_id)})
    else:
        output.write_text(str(tenant.tenant_id))


@tenant_app.command("list")
def list_tenants(*, as_json: AsJson = False) -> None:
    """List all tenants."""
    with _transaction() as (conn, _):
        found = tenants.list_tenants(conn)
    rows = output.table("id", "name", "weight", "buckets", "stored bytes", "disabled")
    for tenant in found:
        if as_json:
            output.write_json({**output.plain(tenant), "tenant_id": str(tenant.tenant_id)})
            continue
        buckets = "the installation's" if tenant.allowed_buckets is None else ", ".join(tenant.allowed_buckets)
        disabled = "yes" if tenant.disabled_at else ""
        rows.add_row(
            str(tenant.tenant_id), tenant.name, f"{tenant.weight:g}", buckets, str(tenant.stored_bytes), disabled
        )
    if not as_json:
        output.data.print(rows)


@key_app.command("create")
def create_key(
    tenant: TenantName,
    *,
    name: Annotated[str, typer.Option(help="What it is for.")] = "default",
    scope: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(SCOPES)}; repeatable.")] = None,
    expires: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%d"], help="When it stops working.")
    ] = None,
) -> None:
    """Create a key; it is written this once."""
    scopes = scope or _DEFAULT_SCOPES
    for entry in scopes:
        if entry not in SCOPES:
            raise typer.BadParameter(f"{entry!r} is no scope; the scopes are {', '.join(SCOPES)}")
    with _transaction() as (conn, settings):
        pepper = check_pepper(settings.api_key_pepper.get_secret_value())
        key = tenants.create_key(
            conn,
            _tenant(conn, tenant).tenant_id,
            name=name,
            scopes=scopes,
            expires_at=expires.astimezone() if expires else None,
            pepper=pepper,
        )
    output.messages.print(f"key {key.key_id} ({key.prefix}); it is not shown again:", soft_wrap=True)
    output.write_text(key.secret)


@key_app.command("list")
def list_keys(tenant: TenantName, *, as_json: AsJson = False) -> None:
    """List a tenant's keys, without their secrets."""
    with _transaction() as (conn, _):
        found = tenants.list_keys(conn, _tenant(conn, tenant).tenant_id)
    rows = output.table("id", "name", "prefix", "scopes", "expires", "revoked")
    for key in found:
        if as_json:
            output.write_json({**output.plain(key), "key_id": str(key.key_id)})
            continue
        expires = key.expires_at.isoformat() if key.expires_at else ""
        rows.add_row(
            str(key.key_id), key.name, key.prefix, " ".join(key.scopes), expires, "yes" if key.revoked_at else ""
        )
    if not as_json:
        output.data.print(rows)


@key_app.command("revoke")
def revoke_key(
    tenant: TenantName, key_id: Annotated[uuid.UUID, typer.Argument(metavar="KEY", help="The key's id.")]
) -> None:
    """Revoke a key; it opens nothing a few seconds later."""
    with _transaction() as (conn, _):
        if not tenants.revoke_key(conn, _tenant(conn, tenant).tenant_id, key_id):
            raise NotFound(f"{tenant} has no such active key")


@contextmanager
def _transaction() -> Iterator[tuple[Connection, Settings]]:
    settings = Settings()
    database = Database(settings.database_url, pool_size=1, application_name="batchsight admin")
    try:
        with database.begin() as conn:
            yield conn, settings
    finally:
        database.close()


def _tenant(conn: Connection, name: str) -> tenants.Tenant:
    found = tenants.find_tenant(conn, name)
    if found is None:
        raise NotFound(f"there is no tenant {name!r}; see `batchsight admin tenant list`")
    return found
