"""Kinds, usage, tenants and keys."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from api.schemas.base import Answer, Id, Moment, Request

Scope = Literal["jobs:read", "jobs:write", "files:read", "files:write", "webhooks:read", "webhooks:write", "admin"]
_DEFAULT_SCOPES: list[Scope] = [
    "jobs:read",
    "jobs:write",
    "files:read",
    "files:write",
    "webhooks:read",
    "webhooks:write",
]


class KindInfo(Answer):
    """What can be asked. `parameters` is a JSON schema."""

    name: str
    title: str
    media: list[str]
    many_media: bool
    parameters: dict[str, Any]
    examples: list[dict[str, Any]]


class KindList(Answer):
    """All kinds."""

    object: Literal["list"] = "list"
    data: list[KindInfo]


class UsageReport(Answer):
    """What the tenant has spent in a time, by kind."""

    object: Literal["usage"] = "usage"
    created_from: datetime | None = None
    created_until: datetime | None = None
    jobs: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    tiles: int
    device_seconds: float
    cost: float
    stored_bytes: int
    active_items: int


class TenantRequest(Request):
    """A new tenant. Quotas left out are the installation's defaults."""

    name: str = Field(min_length=1, max_length=200)
    weight: float = Field(1.0, gt=0, le=1_000, description="its share against other tenants")
    allowed_buckets: list[Annotated[str, Field(min_length=1, max_length=1_024)]] | None = Field(
        None, description="`bucket` or `bucket/prefix`; null: the installation's own list"
    )
    export_buckets: list[Annotated[str, Field(min_length=1, max_length=1_024)]] | None = Field(
        None, description="where it may export to; null: the installation's own list"
    )
    max_active_items: int | None = Field(None, ge=0, le=2**53)
    max_stored_bytes: int | None = Field(None, ge=0, le=2**53)
    requests_per_minute: int | None = Field(None, ge=1, le=1_000_000)


class Tenant(Answer):
    """A tenant."""

    id: uuid.UUID
    object: Literal["tenant"] = "tenant"
    name: str
    weight: float
    allowed_buckets: list[str] | None = None
    export_buckets: list[str] | None = None
    max_active_items: int
    max_stored_bytes: int
    stored_bytes: int
    requests_per_minute: int | None = None
    created_at: datetime
    disabled_at: datetime | None = None


class TenantList(Answer):
    """All tenants."""

    object: Literal["list"] = "list"
    data: list[Tenant]


class KeyRequest(Request):
    """A new API key."""

    tenant_id: Id
    name: str = Field(min_length=1, max_length=200)
    scopes: list[Scope] = Field(default=_DEFAULT_SCOPES, min_length=1)
    expires_at: Moment | None = None


class NewKey(Answer):
    """The key, shown this once."""

    id: uuid.UUID
    object: Literal["api_key"] = "api_key"
    prefix: str
    key: str


class Key(Answer):
    """A key, without its secret."""

    id: uuid.UUID
    object: Literal["api_key"] = "api_key"
    name: str
    prefix: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None


class KeyList(Answer):
    """All keys of a tenant."""

    object: Literal["list"] = "list"
    data: list[Key]


class Revoked(Answer):
    """A key that opens nothing any more."""

    id: uuid.UUID
    revoked: Literal[True] = True
