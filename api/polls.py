"""The short way of a poll: a known key asks for a job that was read a moment ago.

Plain ASGI in front of the application, for `GET /v1/jobs/{id}` without a query. It answers from what this process has
in memory, the key and the job's snapshot; what is missing goes the whole way through the route, which fills both. The
two count against the same rate and answer from the same `Snapshot`.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from types import SimpleNamespace

from api.middleware import App, Message, Receive, Scope, Send
from api.services import Services
from api.snapshots import Snapshot

_PATH = re.compile(r"\A/v1/jobs/([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})\Z")
_ROUTE = SimpleNamespace(path="/v1/jobs/{job_id}")  # as the router names it, for logs and metrics
_SCOPE = "jobs:read"


class Polls:
    """Answers polls of `services()` from memory; everything else goes to `app`."""

    def __init__(self, app: App, *, services: Callable[[], Services | None]) -> None:
        self._app = app
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http" and scope["method"] == "GET" and not scope["query_string"]:
            matched = _PATH.match(scope["path"])
            if matched is not None:
                headers = dict(scope["headers"])
                snapshot = await self._found(scope, headers, uuid.UUID(matched[1]))
                if snapshot is not None:
                    for message in _answer(snapshot, _text(headers, b"if-none-match")):
                        await send(message)
                    return
        await self._app(scope, receive, send)

    async def _found(self, scope: Scope, headers: dict[bytes, bytes], job_id: uuid.UUID) -> Snapshot | None:
        services = self._services()
        if services is None or b"prefer" in headers:
            return None
        principal = services.auth.remembered(_text(headers, b"authorization"))
        if principal is None or _SCOPE not in principal.scopes:
            return None
        snapshot = services.snapshots.get(principal.tenant_id, job_id)
        if snapshot is None or not snapshot.knows(_text(headers, b"if-none-match")):
            return None
        decision = await services.limiter.hit(principal.tenant_id, principal.tenant.requests_per_minute)
        state = scope.setdefault("state", {})
        if not decision.allowed:
            state["counted"] = decision  # the route refuses it, and does not count it again
            return None
        state["tenant_id"] = str(principal.tenant_id)
        state["rate_headers"] = decision.headers()
        scope["route"] = _ROUTE
        return snapshot


def _answer(snapshot: Snapshot, if_none_match: str | None) -> tuple[Message, Message]:
    headers = list(snapshot.raw_headers)
    if snapshot.matches(if_none_match):
        return {"type": "http.response.start", "status": 304, "headers": headers}, {"type": "http.response.body"}
    body = snapshot.body
    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    return {"type": "http.response.start", "status": 200, "headers": headers}, {
        "type": "http.response.body",
        "body": body,
    }


def _text(headers: dict[bytes, bytes], name: bytes) -> str | None:
    value = headers.get(name)
    return None if value is None else value.decode("latin-1")
