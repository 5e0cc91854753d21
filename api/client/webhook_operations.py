"""The operations of `client.webhooks`, written once as generators of steps."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from .calls import Call, Listing, Operation
from .reading import Core, given, id_of, json_of, pages
from .retry import exchange
from .webhook_models import WebhookDelivery, WebhookEndpoint, WebhookTest

_PATH = "/v1/webhook_endpoints"
_TEST_WAIT = 20


def create(
    core: Core,
    url: str,
    *,
    name: str = "",
    event_types: Sequence[str] = ("*",),
    idempotency_key: str | None = None,
) -> Operation[WebhookEndpoint]:
    """Create an endpoint. Keep its `secret`: it is shown this once."""
    body = {"url": url, "name": name, "event_types": list(event_types)}
    return WebhookEndpoint.from_json((yield from _post(core, _PATH, body, idempotency_key)))


def get(core: Core, endpoint_id: str) -> Operation[WebhookEndpoint]:
    """One endpoint. Raises `NotFound`."""
    reply = yield from exchange(Call(method="GET", path=_one(endpoint_id)), core.retry)
    return WebhookEndpoint.from_json(json_of(reply))


def listed(core: Core) -> Listing[WebhookEndpoint]:
    """All endpoints, newest first."""
    yield from pages(core, _PATH, {}, WebhookEndpoint.from_json)


def update(
    core: Core,
    endpoint_id: str,
    *,
    url: str | None = None,
    name: str | None = None,
    event_types: Sequence[str] | None = None,
    enabled: bool | None = None,
) -> Operation[WebhookEndpoint]:
    """Change what is given; `enabled=True` after a 410 has switched it off."""
    types = None if event_types is None else list(event_types)
    changes = {"url": url, "name": name, "event_types": types, "enabled": enabled}
    body = {field: value for field, value in changes.items() if value is not None}
    return WebhookEndpoint.from_json((yield from _post(core, _one(endpoint_id), body, None)))


def delete(core: Core, endpoint_id: str) -> Operation[None]:
    """Delete an endpoint."""
    yield from exchange(Call(method="DELETE", path=_one(endpoint_id)), core.retry)


def rotate(
    core: Core, endpoint_id: str, *, grace_seconds: int = 86_400, idempotency_key: str | None = None
) -> Operation[WebhookEndpoint]:
    """A new `secret`, shown this once; the old one signs beside it for `grace_seconds` more."""
    path = f"{_one(endpoint_id)}/rotate_secret"
    value = yield from _post(core, path, {"grace_seconds": grace_seconds}, idempotency_key)
    return WebhookEndpoint.from_json(value)


def send_test(core: Core, endpoint_id: str, *, event_type: str = "webhook.test") -> Operation[WebhookTest]:
    """Send a sample event once, and wait for what the receiver says."""
    call = Call(
        method="POST",
        path=f"{_one(endpoint_id)}/test",
        query={"wait": str(_TEST_WAIT)},
        json={"event_type": event_type},
        timeout=_TEST_WAIT + 30.0,
    )
    return WebhookTest.from_json(json_of((yield from exchange(call, core.retry))))


def deliveries(core: Core, endpoint_id: str, *, state: str | None = None) -> Listing[WebhookDelivery]:
    """The endpoint's deliveries with their attempts, newest first."""
    yield from pages(core, f"{_one(endpoint_id)}/deliveries", given({"state": state}), WebhookDelivery.from_json)


def replay(
    core: Core, endpoint_id: str, delivery_id: str, *, idempotency_key: str | None = None
) -> Operation[WebhookDelivery]:
    """Send the event of a delivery again, as a new delivery."""
    path = f"{_one(endpoint_id)}/deliveries/{id_of(delivery_id)}/replay"
    return WebhookDelivery.from_json((yield from _post(core, path, None, idempotency_key)))


def replay_failed(core: Core, endpoint_id: str, *, since: datetime) -> Operation[int]:
    """Send again everything that failed since then and has not arrived meanwhile; how many."""
    total = 0
    while True:
        body = {"since": since.astimezone().isoformat()}
        value = yield from _post(core, f"{_one(endpoint_id)}/replay", body, None)
        total += int(value["replayed"])
        if not value["has_more"]:
            return total


def _post(core: Core, path: str, body: Any, idempotency_key: str | None) -> Operation[dict[str, Any]]:
    key = idempotency_key or str(uuid.uuid4())
    call = Call(method="POST", path=path, json=body, headers={"idempotency-key": key})
    return json_of((yield from exchange(call, core.retry)))


def _one(endpoint_id: str) -> str:
    return f"{_PATH}/{id_of(endpoint_id)}"
