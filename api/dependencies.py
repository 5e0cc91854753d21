"""What routes ask for: the services, the caller, a page's bounds."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any, cast

from fastapi import Depends, Query, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api.services import Services
from pipelines.jobs.errors import Forbidden, RateLimited
from pipelines.store.tenants import Principal

_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="ApiKey",
    bearerFormat="bs_<prefix>_<secret>",
    description="An API key, made with `batchsight admin key create`",
)
_Credentials = Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]


def services_of(request: Request) -> Services:
    """The running parts."""
    return cast(Services, request.app.state.services)


ServicesDep = Annotated[Services, Depends(services_of)]

Caller = Callable[..., Coroutine[Any, Any, Principal]]


def caller_with(scope: str) -> Caller:
    """A dependency: the caller, whose key must have `scope`, counted against the tenant's rate."""

    async def caller(request: Request, services: ServicesDep, credentials: _Credentials) -> Principal:
        del credentials  # declared for OpenAPI; read from the header, whose every form is judged in one place
        principal = await services.auth.authenticate(request.headers.get("authorization"))
        request.state.tenant_id = str(principal.tenant_id)
        decision = getattr(request.state, "counted", None)
        if decision is None:
            decision = await services.limiter.hit(principal.tenant_id, principal.tenant.requests_per_minute)
        request.state.rate_headers = decision.headers()
        if not decision.allowed:
            raise RateLimited(
                f"more than {decision.quota} requests a minute; wait {decision.reset} seconds",
                retry_after=decision.reset,
            )
        if scope not in principal.scopes:
            raise Forbidden(f"this key lacks the scope {scope}; use a key that has it, or ask for one")
        return principal

    return caller


JobsRead = Annotated[Principal, Depends(caller_with("jobs:read"))]
JobsWrite = Annotated[Principal, Depends(caller_with("jobs:write"))]
FilesRead = Annotated[Principal, Depends(caller_with("files:read"))]
FilesWrite = Annotated[Principal, Depends(caller_with("files:write"))]
WebhooksRead = Annotated[Principal, Depends(caller_with("webhooks:read"))]
WebhooksWrite = Annotated[Principal, Depends(caller_with("webhooks:write"))]
Admin = Annotated[Principal, Depends(caller_with("admin"))]

Limit = Annotated[int, Query(ge=1, le=1_000, description="entries a page")]
