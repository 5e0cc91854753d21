"""Webhook endpoints: create, change, rotate the secret, test, the log of deliveries, replay.

Paths and fields are those that OpenAI's client calls as `client.webhooks`, with what it lacks beside them.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy import Connection

from api.dependencies import Limit, ServicesDep, WebhooksRead, WebhooksWrite
from api.documentation import PROBLEMS, problems
from api.idempotency import IdempotencyKey, Stored, once
from api.jsonbody import StrictRoute
from api.routes.jobs import page_of
from api.schemas import webhooks as schema
from api.schemas.base import Page
from api.services import Services
from pipelines.control import webhooks
from pipelines.jobs.webhooks import EventType, show_event
from pipelines.store import webhook_deliveries, webhook_endpoints
from pipelines.store.tenants import Principal
from pipelines.store.webhook_deliveries import Delivery
from pipelines.store.webhook_endpoints import Endpoint, WithSecret

router = APIRouter(prefix="/v1/webhook_endpoints", tags=["webhooks"], route_class=StrictRoute, responses=PROBLEMS)

_LOOK = 0.25  # seconds between looks at a test that is on its way
_LONGEST_TEST = 30


@router.post(
    "",
    operation_id="createWebhookEndpoint",
    response_model=schema.EndpointWithSecret,
    responses=problems(409),
    summary="Create a webhook endpoint",
)
async def create_endpoint(
    request: Request,
    body: schema.EndpointRequest,
    services: ServicesDep,
    caller: WebhooksWrite,
    key: IdempotencyKey = None,
) -> Response:
    """The secret is shown this once: the receiver needs it to tell our events from others'."""
    del key  # declared for OpenAPI; read with the request

    def work(conn: Connection) -> Stored:
        made = webhooks.create(
            conn,
            caller.tenant_id,
            name=body.name,
            url=body.url,
            event_types=body.event_types,
            policy=services.webhook_policy,
            most=services.settings.webhook_endpoints_per_tenant,
        )
        return Stored(status=200, body=_with_secret(made))

    return _answered(await once(services, caller, request, body.model_dump(mode="json"), work))


@router.get(
    "",
    operation_id="listWebhookEndpoints",
    response_model=Page[schema.Endpoint],
    summary="List webhook endpoints, newest first",
)
async def list_endpoints(
    services: ServicesDep,
    caller: WebhooksRead,
    after: Annotated[uuid.UUID | None, Query(description="`last_id` of the page before")] = None,
    limit: Limit = 20,
) -> JSONResponse:
    """Without their secrets."""
    found = await services.transact(
        lambda conn: webhook_endpoints.list_endpoints(conn, caller.tenant_id, limit=limit + 1, before=after)
    )
    return JSONResponse(page_of([_shown(one) for one in found[:limit]], "id", more=len(found) > limit))


@router.get(
    "/{endpoint_id}",
    operation_id="getWebhookEndpoint",
    response_model=schema.Endpoint,
    responses=problems(404),
    summary="Read a webhook endpoint",
)
async def get_endpoint(endpoint_id: uuid.UUID, services: ServicesDep, caller: WebhooksRead) -> JSONResponse:
    """Without its secret."""
    found = await services.transact(lambda conn: webhooks.read(conn, caller.tenant_id, endpoint_id))
    return JSONResponse(_shown(found))


@router.post(
    "/{endpoint_id}",
    operation_id="updateWebhookEndpoint",
    response_model=schema.Endpoint,
    responses=problems(404),
    summary="Change a webhook endpoint",
)
async def update_endpoint(
    endpoint_id: uuid.UUID, body: schema.EndpointChange, services: ServicesDep, caller: WebhooksWrite
) -> JSONResponse:
    """Only what is given changes. A disabled endpoint gets nothing; enable it, then replay what it missed."""
    found = await services.transact(
        lambda conn: webhooks.change(
            conn,
            caller.tenant_id,
            endpoint_id,
            policy=services.webhook_policy,
            name=body.name,
            url=body.url,
            event_types=body.event_types,
            enabled=body.enabled,
        )
    )
    return JSONResponse(_shown(found))


@router.delete(
    "/{endpoint_id}",
    operation_id="deleteWebhookEndpoint",
    responses=problems(404),
    summary="Delete a webhook endpoint",
)
async def delete_endpoint(
    endpoint_id: uuid.UUID, services: ServicesDep, caller: WebhooksWrite
) -> schema.DeletedEndpoint:
    """Its secrets are forgotten at once, its log with time."""
    await services.transact(lambda conn: webhooks.delete(conn, caller.tenant_id, endpoint_id))
    return schema.DeletedEndpoint(id=endpoint_id)


@router.post(
    "/{endpoint_id}/rotate_secret",
    operation_id="rotateWebhookSecret",
    response_model=schema.EndpointWithSecret,
    responses=problems(404, 409),
    summary="Rotate the secret",
)
async def rotate_secret(
    request: Request,
    endpoint_id: uuid.UUID,
    services: ServicesDep,
    caller: WebhooksWrite,
    body: schema.RotateRequest | None = None,
    key: IdempotencyKey = None,
) -> Response:
    """The new secret is shown this once. During the grace every event carries a signature of each."""
    del key
    asked = body or schema.RotateRequest()

    def work(conn: Connection) -> Stored:
        rotated = webhooks.rotate(conn, caller.tenant_id, endpoint_id, grace=asked.grace)
        return Stored(status=200, body=_with_secret(rotated))

    return _answered(await once(services, caller, request, asked.model_dump(mode="json"), work))


@router.post(
    "/{endpoint_id}/test",
    operation_id="testWebhookEndpoint",
    response_model=schema.TestResult,
    responses=problems(404, 409),
    summary="Send a sample event",
)
async def send_sample(
    endpoint_id: uuid.UUID,
    services: ServicesDep,
    caller: WebhooksWrite,
    body: schema.TestRequest | None = None,
    wait: Annotated[int, Query(ge=0, le=_LONGEST_TEST, description="seconds to wait for the answer")] = 20,
) -> schema.TestResult:
    """Sent as every event is, signed, but once; the answer says what the receiver said. Its ids are zeros."""
    event = EventType((body or schema.TestRequest()).event_type)
    delivery_id = await services.transact(lambda conn: webhooks.test(conn, caller.tenant_id, endpoint_id, event))
    found = await _ended(services, caller, endpoint_id, delivery_id, wait)
    error = found.last_error if found.finished_at else f"not sent after {wait} seconds; see the log of deliveries"
    return schema.TestResult(
        webhook_endpoint_id=endpoint_id,
        delivery_id=delivery_id,
        event_type=str(event),
        success=found.state == "succeeded",
        status_code=found.last_status,
        error=error,
    )


@router.get(
    "/{endpoint_id}/deliveries",
    operation_id="listWebhookDeliveries",
    response_model=Page[schema.Delivery],
    responses=problems(404),
    summary="List deliveries with their attempts, newest first",
)
async def list_deliveries(
    endpoint_id: uuid.UUID,
    services: ServicesDep,
    caller: WebhooksRead,
    state: Annotated[schema.DeliveryState | None, Query(description="only these")] = None,
    after: Annotated[uuid.UUID | None, Query(description="`last_id` of the page before")] = None,
    limit: Limit = 20,
) -> JSONResponse:
    """Kept for as long as results are."""

    def work(conn: Connection) -> tuple[Delivery, ...]:
        webhooks.read(conn, caller.tenant_id, endpoint_id)
        return webhook_deliveries.list_deliveries(
            conn, caller.tenant_id, endpoint_id, limit=limit + 1, state=state, before=after
        )

    found = await services.transact(work)
    return JSONResponse(page_of([_delivery(one) for one in found[:limit]], "id", more=len(found) > limit))


@router.post(
    "/{endpoint_id}/deliveries/{delivery_id}/replay",
    operation_id="replayWebhookDelivery",
    response_model=schema.Delivery,
    responses=problems(404, 409),
    summary="Send a delivery's event again",
)
async def replay_delivery(
    request: Request,
    endpoint_id: uuid.UUID,
    delivery_id: uuid.UUID,
    services: ServicesDep,
    caller: WebhooksWrite,
    key: IdempotencyKey = None,
) -> Response:
    """A new delivery of the same event, under the same `webhook-id`; the old one stays as it is."""
    del key

    def work(conn: Connection) -> Stored:
        made = webhooks.replay(conn, caller.tenant_id, endpoint_id, delivery_id)
        return Stored(status=200, body=_delivery(made))

    return _answered(await once(services, caller, request, {}, work))


@router.post(
    "/{endpoint_id}/replay",
    operation_id="replayFailedWebhooks",
    responses=problems(404, 409),
    summary="Send everything that failed since a time again",
)
async def replay_failed(
    endpoint_id: uuid.UUID, body: schema.ReplayRequest, services: ServicesDep, caller: WebhooksWrite
) -> schema.Replayed:
    """What has arrived meanwhile, or is on its way, is left out: calling twice sends nothing twice."""
    replayed = await services.transact(
        lambda conn: webhooks.replay_failed(conn, caller.tenant_id, endpoint_id, since=body.since)
    )
    return schema.Replayed(replayed=replayed, has_more=replayed == webhooks.MOST_REPLAYED)


async def _ended(
    services: Services, caller: Principal, endpoint_id: uuid.UUID, delivery_id: uuid.UUID, wait: int
) -> Delivery:
    until = asyncio.get_running_loop().time() + wait
    while True:
        found = await services.transact(
            lambda conn: webhooks.delivery(conn, caller.tenant_id, endpoint_id, delivery_id)
        )
        if found.finished_at or services.watch.closing or asyncio.get_running_loop().time() >= until:
            return found
        await asyncio.sleep(_LOOK)


def _answered(stored: Stored) -> Response:
    headers = {"Idempotent-Replayed": "true"} if stored.replayed else {}
    return JSONResponse(stored.body, status_code=stored.status, headers=headers)


def _fields(found: Endpoint) -> dict[str, Any]:
    return {
        "id": found.endpoint_id,
        "name": found.name,
        "url": found.url,
        "event_types": list(found.event_types),
        "enabled": found.disabled_at is None,
        "disabled_reason": found.disabled_reason,
        "signing_secret_hint": found.secret_hint,
        "created_at": int(found.created_at.timestamp()),
        "updated_at": int(found.updated_at.timestamp()),
    }


def _shown(found: Endpoint) -> dict[str, Any]:
    return schema.Endpoint(**_fields(found)).model_dump(mode="json")


def _with_secret(made: WithSecret) -> dict[str, Any]:
    return schema.EndpointWithSecret(**_fields(made.endpoint), signing_secret=made.secret).model_dump(mode="json")


def _delivery(found: Delivery) -> dict[str, Any]:
    return schema.Delivery(
        id=found.delivery_id,
        endpoint_id=found.endpoint_id,
        event_id=show_event(found.event_id),
        event_type=found.event,
        job_id=found.job_id,
        state=found.state,
        next_attempt_at=found.next_at if found.state == "pending" else None,
        last_status_code=found.last_status,
        last_error=found.last_error,
        created_at=found.created_at,
        finished_at=found.finished_at,
        attempts=[
            schema.Attempt(
                attempt=one.attempt,
                started_at=one.started_at,
                ended_at=one.ended_at,
                status_code=one.status,
                error=one.error,
                answer=one.answer,
            )
            for one in found.attempts
        ],
    ).model_dump(mode="json")
