"""Plain ASGI around the application: request id, access log, metrics, and bodies counted while they are read."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import structlog
from starlette.requests import ClientDisconnect, Request

from api.errors import BodyTooLarge, unexpected_error
from api.metrics import Metrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_log = structlog.get_logger(__name__)
_REQUEST_ID = re.compile(r"\A[A-Za-z0-9._-]{1,128}\Z")
_NOT_MODIFIED = 304
_CLIENT_GONE = 499  # as nginx logs it
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})


class Observe:
    """Gives each request an id (the client's own where it is one), logs it once, counts it, answers what crashed."""

    def __init__(self, app: App, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        began = time.perf_counter()
        status = 0

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                more = {"x-request-id": request_id, **scope["state"].get("rate_headers", {})}
                message.setdefault("headers", []).extend((name.encode(), more[name].encode()) for name in more)
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, observed)
            except ClientDisconnect:
                status = status or _CLIENT_GONE
            except Exception as error:
                if status:
                    raise  # the answer has begun: only cutting it off tells the client that it is not whole
                await unexpected_error(Request(scope), error)(scope, receive, observed)
            finally:
                self._report(scope, status or 500, time.perf_counter() - began)

    def _report(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unknown")
        self._metrics.requests.labels(scope["method"], route, str(status)).inc()
        self._metrics.seconds.labels(scope["method"], route).observe(seconds)
        if scope["path"] in _QUIET:
            return
        # A poll that brought nothing is counted above, and is no news: thousands of them would be most of the log.
        level = logging.DEBUG if status == _NOT_MODIFIED else logging.INFO
        if not logging.getLogger(__name__).isEnabledFor(level):  # before anything is put together
            return
        state = scope.get("state", {})
        _log.log(
            level,
            "request",
            method=scope["method"],
            path=scope["path"],
            route=route,
            status=status,
            seconds=round(seconds, 4),
            tenant_id=state.get("tenant_id"),
            error_code=state.get("error_code"),
        )


class BodyLimit:
    """Refuses a body as soon as more bytes have come than its route takes; a claimed length is checked at once too."""

    def __init__(self, app: App, *, limit: Callable[[Scope], int]) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limit(scope)
        claimed = _header(scope, b"content-length")
        too_large = claimed is not None and claimed.isdigit() and int(claimed) > limit
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            if too_large:
                raise BodyTooLarge(limit)
            message = await receive()
            if message["type"] == "http.request":
                taken += len(message.get("body", b""))
                if taken > limit:
                    raise BodyTooLarge(limit)
            return message

        await self._app(scope, counted, send)


def _request_id(scope: Scope) -> str:
    sent = _header(scope, b"x-request-id")
    text = sent.decode("latin-1") if sent else ""
    return text if _REQUEST_ID.match(text) else f"req_{secrets.token_hex(16)}"


def _header(scope: Scope, name: bytes) -> bytes | None:
    return next((value for key, value in scope["headers"] if key == name), None)
