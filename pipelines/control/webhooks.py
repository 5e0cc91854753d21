"""What a tenant may do with its endpoints: the rules in front of `pipelines.store.webhook_endpoints`.

A job names an endpoint by its id and cannot bring an address of its own: a receiver must know the secret before the
first event comes, and a secret in the answer to a submission would be stored with it for idempotent repetitions.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import uuid
from collections.abc import Sequence
from datetime import datetime

import httpx2
from sqlalchemy import Connection

from pipelines.jobs.errors import Conflict, InvalidParameter, NotFound, QuotaExceeded
from pipelines.jobs.webhooks import EventType
from pipelines.media.ssrf import Address, AddressPolicy
from pipelines.store import webhook_deliveries, webhook_endpoints, webhook_events
from pipelines.store.webhook_deliveries import Delivery
from pipelines.store.webhook_endpoints import Endpoint, WithSecret

MOST_REPLAYED = 1_000
MOST_RETIRING = 4
_LOOPBACK = ipaddress.IPv4Address("127.0.0.1")
_NUMERIC = re.compile(r"\A[0-9a-fx.]+\Z", re.IGNORECASE)


def create(
    conn: Connection,
    tenant_id: uuid.UUID,
    *,
    name: str,
    url: str,
    event_types: Sequence[str],
    policy: AddressPolicy,
    most: int,
) -> WithSecret:
    """A new endpoint. Raises `InvalidParameter` for the address, `QuotaExceeded` beyond `most`."""
    check_url(url, policy)
    if webhook_endpoints.count_locked(conn, tenant_id) >= most:
        raise QuotaExceeded(f"{most} webhook endpoints are allowed; delete one that is no longer needed")
    return webhook_endpoints.insert(conn, tenant_id, name=name, url=url, event_types=event_types)


def read(conn: Connection, tenant_id: uuid.UUID, endpoint_id: uuid.UUID) -> Endpoint:
    """The tenant's endpoint. Raises `NotFound`."""
    found = webhook_endpoints.get(conn, tenant_id, endpoint_id)
    if found is None:
        raise NotFound("there is no such webhook endpoint")
    return found


def change(
    conn: Connection,
    tenant_id: uuid.UUID,
    endpoint_id: uuid.UUID,
    *,
    policy: AddressPolicy,
    name: str | None = None,
    url: str | None = None,
    event_types: Sequence[str] | None = None,
    enabled: bool | None = None,
) -> Endpoint:
    """Change what is given. Raises `NotFound`, `InvalidParameter`."""
    read(conn, tenant_id, endpoint_id)
    if url is not None:
        check_url(url, policy)
    if name is not None or url is not None or event_types is not None:
        webhook_endpoints.update(conn, tenant_id, endpoint_id, name=name, url=url, event_types=event_types)
    if enabled:
        webhook_endpoints.enable(conn, tenant_id, endpoint_id)
    elif enabled is False:
        webhook_endpoints.disable(conn, tenant_id, endpoint_id, reason="switched off by its owner")
    return read(conn, tenant_id, endpoint_id)


def delete(conn: Connection, tenant_id: uuid.UUID, endpoint_id: uuid.UUID) -> None:
    """Forget it. Raises `NotFound`."""
    if not webhook_endpoints.delete(conn, tenant_id, endpoint_id):
        raise NotFound("there is no such webhook endpoint")


def rotate(conn: Connection, tenant_id: uuid.UUID, endpoint_id: uuid.UUID, *, grace: float) -> WithSecret:
    """A new secret, the old one valid for `grace` seconds more. Raises `NotFound`, `Conflict`.

    Each active secret adds a signature to every event: their number is bounded.
    """
    retiring = webhook_endpoints.retiring_secrets(conn, tenant_id, endpoint_id)
    if retiring is None:
        raise NotFound("there is no such webhook endpoint")
    if grace and retiring >= MOST_RETIRING:
        raise Conflict(f"{retiring} old secrets are still valid; wait for one to expire, or rotate without grace")
    return webhook_endpoints.rotate(conn, tenant_id, endpoint_id, grace=grace)


def test(conn: Connection, tenant_id: uuid.UUID, endpoint_id: uuid.UUID, event: EventType) -> uuid.UUID:
    """Send a sample event, once; its delivery. Raises `NotFound`, `Conflict`."""
    _must_be_enabled(read(conn, tenant_id, endpoint_id))
    return webhook_events.insert_test(conn, tenant_id, endpoint_id, event)


def delivery(conn: Connection, tenant_id: uuid.UUID, endpoint_id: uuid.UUID, delivery_id: uuid.UUID) -> Delivery:
    """One delivery of the tenant's endpoint. Raises `NotFound`."""
    found = webhook_deliveries.get(conn, tenant_id, endpoint_id, delivery_id)
    if found is None:
        raise NotFound("there is no such delivery")
    return found


def replay(conn: Connection, tenant_id: uuid.UUID, endpoint_id: uuid.UUID, delivery_id: uuid.UUID) -> Delivery:
    """Send the event of a delivery that has ended once more, as a new one. Raises `NotFound`, `Conflict`."""
    _must_be_enabled(read(conn, tenant_id, endpoint_id))
    found = delivery(conn, tenant_id, endpoint_id, delivery_id)
    if found.finished_at is None:
        raise Conflict("the delivery is on its way already")
    return delivery(conn, tenant_id, endpoint_id, webhook_events.deliver(conn, tenant_id, endpoint_id, found.event_id))


def replay_failed(conn: Connection, tenant_id: uuid.UUID, endpoint_id: uuid.UUID, *, since: datetime) -> int:
    """Send again what has failed since then and not arrived meanwhile; how many. Raises `NotFound`, `Conflict`."""
    _must_be_enabled(read(conn, tenant_id, endpoint_id))
    return webhook_deliveries.replay_failed(conn, tenant_id, endpoint_id, since=since, limit=MOST_REPLAYED)


def check_url(url: str, policy: AddressPolicy) -> None:
    """Raises `InvalidParameter` for what will never be sent to; a name is resolved and checked at each sending."""
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise InvalidParameter("this is not a URL", param="url") from error
    if parsed.scheme != "https" and not (policy.allow_http and parsed.scheme == "http"):
        raise InvalidParameter("a webhook's address must begin with https://", param="url")
    if parsed.userinfo or not parsed.host or parsed.fragment:
        raise InvalidParameter("a webhook's address has a host, and neither user name nor fragment", param="url")
    literal = _literal(parsed.host)
    if literal is not None and not policy.permits(literal):
        raise InvalidParameter("a webhook must go to an address of the public internet", param="url")


def _literal(host: str) -> Address | None:
    """The address that a host spells out, in any of the ways that a resolver reads; None for a name."""
    if host == "localhost" or host.endswith(".localhost"):
        return _LOOPBACK
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        if not _NUMERIC.match(host):
            return None
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except OSError:
        return None


def _must_be_enabled(endpoint: Endpoint) -> None:
    if endpoint.disabled_at is not None:
        raise Conflict(f"the endpoint is disabled ({endpoint.disabled_reason}); enable it first")
