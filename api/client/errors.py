"""What a call may raise.

BatchsightError
├── ConfigurationError   no address or key is known
├── ConnectionFailed     the server could not be reached, or the connection broke
├── WaitTimeout          `wait` ran out of time; the job goes on, and waiting again resumes
└── ApiError             the server answered with an error; `status`, `code`, `param`, `request_id`
    ├── InvalidRequest   400, 413, 415, 422: change the request
    ├── AuthenticationFailed (401), PermissionDenied (403), NotFound (404), Conflict (409)
    ├── RateLimited      429; `retry_after` seconds
    └── ServerError      5xx
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


class BatchsightError(Exception):
    """Root of what this package raises."""


class ConfigurationError(BatchsightError):
    """No address or key is known."""


class ConnectionFailed(BatchsightError):
    """The server could not be reached, or the connection broke."""


class WaitTimeout(BatchsightError):
    """`wait` ran out of time. The job goes on; waiting again resumes."""


class ApiError(BatchsightError):
    """The server answered with an error. `retry_after` in seconds, where it said so."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str,
        param: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.param = param
        self.request_id = request_id
        self.retry_after = retry_after

    def __str__(self) -> str:
        where = f" (at {self.param})" if self.param else ""
        return f"{self.message}{where} [{self.code}, HTTP {self.status}]"


class InvalidRequest(ApiError):
    """The request must be changed."""


class AuthenticationFailed(ApiError):
    """No API key, or one that is not valid."""


class PermissionDenied(ApiError):
    """The key lacks a scope."""


class NotFound(ApiError):
    """Nothing of this id is yours."""


class Conflict(ApiError):
    """The resource is in a state that does not allow this."""


class RateLimited(ApiError):
    """Too many requests."""


class ServerError(ApiError):
    """The server failed."""


_BY_STATUS: Mapping[int, type[ApiError]] = {
    401: AuthenticationFailed,
    403: PermissionDenied,
    404: NotFound,
    409: Conflict,
    429: RateLimited,
}


def error_of(status: int, headers: Mapping[str, str], body: bytes) -> ApiError:
    """The exception for an error answer. `headers` with names in lower case."""
    problem = _object(body)
    inner = problem.get("error")
    inner = inner if isinstance(inner, dict) else {}
    message = inner.get("message") or problem.get("detail") or f"the server answered {status}"
    kind = _BY_STATUS.get(status, ServerError if status >= 500 else InvalidRequest)
    return kind(
        str(message),
        status=status,
        code=str(inner.get("code") or "unknown"),
        param=inner.get("param"),
        request_id=headers.get("x-request-id"),
        retry_after=seconds_of(headers.get("retry-after")),
    )


def seconds_of(value: str | None) -> float | None:
    """`Retry-After` in seconds; None where it is missing or a date (our servers send seconds)."""
    try:
        return max(0.0, float(value)) if value is not None else None
    except ValueError:
        return None


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
