"""One body for every error, and the one table from error code to HTTP status.

The body is an RFC 9457 problem (`application/problem+json`) and OpenAI's error object at once, so that every client
reads it. Anything that is not in the tree of `pipelines.jobs.errors` is logged and answered as `internal_error`,
without a word of its text.
"""

from __future__ import annotations

import http
import re
from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from pipelines.jobs.errors import BatchsightError, RateLimited
from pipelines.jobs.violations import most_telling, place_of

_log = structlog.get_logger(__name__)

PROBLEM_JSON = "application/problem+json"

STATUS: Mapping[str, int] = {
    "invalid_request": 400,
    "invalid_json": 400,
    "invalid_parameter": 422,
    "unknown_kind": 422,
    "bad_media": 422,
    "source_forbidden": 403,
    "source_disabled": 403,
    "export_forbidden": 403,
    "media_not_found": 404,
    "unauthenticated": 401,
    "forbidden": 403,
    "not_found": 404,
    "route_not_found": 404,
    "model_not_found": 404,
    "method_not_allowed": 405,
    "not_acceptable": 406,
    "conflict": 409,
    "job_not_cancellable": 409,
    "nothing_to_redrive": 409,
    "idempotency_in_flight": 409,
    "idempotency_mismatch": 422,
    "request_too_large": 413,
    "unsupported_media_type": 415,
    "quota_exceeded": 429,
    "rate_limited": 429,
    "request_cancelled": 409,
    "deadline_exceeded": 503,
    "worker_lost": 500,
    "internal_error": 500,
    "service_unavailable": 503,
    "store_unavailable": 503,
    "blob_store_unavailable": 503,
    "broker_unavailable": 503,
    "source_unavailable": 503,
    "pack_damaged": 503,
    "configuration_error": 503,
}
"""Code → status. A code that is missing here is a defect of the request (422) when permanent; a test reads the tree."""

_OPENAI_TYPE: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}
_HTTP_CODES: Mapping[int, tuple[str, str]] = {
    400: ("invalid_request", "the request could not be read"),
    404: ("route_not_found", "there is no such address; see /docs for those there are"),
    405: ("method_not_allowed", "this address does not take this method; see the Allow header"),
    406: ("not_acceptable", "none of the accepted media types can be sent"),
    413: ("request_too_large", "the request body is too large"),
    415: ("unsupported_media_type", "send the body as application/json"),
}
_RETRY_SECONDS = 2
_DATABASE_RETRY = 5


class NotAcceptable(BatchsightError):
    """None of the accepted media types can be sent."""

    code = "not_acceptable"


class BodyTooLarge(HTTPException):
    """Raised while a body is read; FastAPI lets this type through where it would hide any other."""

    def __init__(self, limit: int) -> None:
        super().__init__(413, f"the request body is larger than {limit} bytes; send less, or upload a file instead")


class UnreadableBody(HTTPException):
    """A JSON body that no database could hold."""

    def __init__(self, detail: str) -> None:
        super().__init__(400, detail)


def status_of(code: str) -> int:
    """The HTTP status for an error code."""
    return STATUS.get(code, 422)


def body_of(
    *, status: int, code: str, message: str, param: str | None, instance: str, more: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Problem and OpenAI error in one. `more`: every violation, where there are several."""
    kind = _OPENAI_TYPE.get(status, "server_error" if status >= 500 else "invalid_request_error")
    body: dict[str, Any] = {
        "type": f"urn:batchsight:error:{code}",
        "title": http.HTTPStatus(status).phrase,
        "status": status,
        "detail": message,
        "instance": instance,
        "error": {"message": message, "type": kind, "param": param, "code": code},
    }
    if more:
        body["errors"] = list(more)
    return body


def response_of(
    request: Request,
    *,
    status: int,
    code: str,
    message: str,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
    more: Sequence[Mapping[str, Any]] = (),
) -> JSONResponse:
    """The error answer."""
    content = body_of(status=status, code=code, message=message, param=param, instance=str(request.url.path), more=more)
    sent = dict(headers or {})
    if status == 401:
        sent.setdefault("WWW-Authenticate", 'Bearer realm="batchsight"')
    if status == 503:
        sent.setdefault("Retry-After", str(_DATABASE_RETRY))
    request.state.error_code = code
    return JSONResponse(content, status_code=status, headers=sent, media_type=PROBLEM_JSON)


def known_error(request: Request, error: BatchsightError) -> JSONResponse:
    """Any error of the tree."""
    status = status_of(error.code)
    headers: dict[str, str] = {}
    if isinstance(error, RateLimited):
        headers["Retry-After"] = str(error.retry_after)
    elif error.code == "idempotency_in_flight":
        headers["Retry-After"] = str(_RETRY_SECONDS)
    elif status == 409:
        headers["x-should-retry"] = "false"  # OpenAI's client would repeat a 409
    elif error.code == "quota_exceeded":
        headers["x-should-retry"] = "false"
    if status >= 500:
        _log.warning("request_failed", code=error.code, path=request.url.path, exc_info=error)
    return response_of(
        request, status=status, code=error.code, message=error.message, param=error.param, headers=headers
    )


def framework_error(request: Request, error: HTTPException) -> JSONResponse:
    """What the framework refuses: unknown addresses, methods, bodies."""
    code, message = _HTTP_CODES.get(error.status_code, ("invalid_request", http.HTTPStatus(error.status_code).phrase))
    if isinstance(error, BodyTooLarge | UnreadableBody):
        message = str(error.detail)
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_allowed(request))
    return response_of(request, status=error.status_code, code=code, message=message, headers=headers)


def _allowed(request: Request) -> list[str]:
    """All methods of an address; the framework names those of the first route alone."""
    found: list[str] = []
    for template, methods in sorted(request.app.openapi()["paths"].items(), key=lambda entry: entry[0].count("{")):
        pattern = "".join(
            "[^/]+" if part.startswith("{") else re.escape(part) for part in re.split(r"(\{[^}]*\})", template)
        )
        if not found and re.fullmatch(pattern, request.url.path):
            found = sorted(method.upper() for method in methods)
    return found


def validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
    """A request that does not match its schema: the first violation in words, all of them in `errors`."""
    found = [_violation(entry) for entry in error.errors()]
    first = _violation(most_telling(error.errors()))
    syntax = first["code"] == "invalid_json"
    return response_of(
        request,
        status=400 if syntax else 422,
        code=first["code"],
        message=first["message"],
        param=first["param"],
        more=[] if syntax else found,
    )


def unexpected_error(request: Request, error: Exception) -> JSONResponse:
    """A defect of ours: logged in full, said in general."""
    _log.error("request_crashed", path=request.url.path, exc_info=error)
    return response_of(
        request,
        status=500,
        code="internal_error",
        message="an unexpected failure inside the service; it has been logged under the request id",
    )


def install(app: FastAPI) -> None:
    """Answer every error in this form."""
    app.add_exception_handler(BatchsightError, known_error)  # type: ignore[arg-type]  # starlette types the error as Exception
    app.add_exception_handler(HTTPException, framework_error)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, validation_error)  # type: ignore[arg-type]


def _violation(entry: Mapping[str, Any]) -> dict[str, Any]:
    if entry["type"] == "json_invalid":
        position = entry["loc"][-1]
        reason = entry.get("ctx", {}).get("error", "not JSON")
        return {
            "code": "invalid_json",
            "param": None,
            "message": f"the body is not valid JSON ({reason} at character {position})",
        }
    place, *path = place_of(entry)
    param = ".".join(path) or None
    message = entry["msg"].removeprefix("Value error, ")
    if entry["type"] == "missing":
        message = "this field is required; add it" if param else "a JSON body is required; send one"
    elif entry["type"] == "extra_forbidden":
        message = "this field does not exist; remove it or check its spelling"
    elif entry["type"] == "model_attributes_type":
        message = "the body must be a JSON object, sent as application/json"
    where = {"query": "query parameter ", "header": "header ", "path": "path parameter "}.get(place, "")
    return {
        "code": "invalid_parameter",
        "param": param,
        "message": f"{where}{param}: {message}" if param else message,
    }
