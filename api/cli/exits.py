"""Exit codes, and which error ends in which."""

from __future__ import annotations

import enum

from api.client import (
    ApiError,
    AuthenticationFailed,
    ConnectionFailed,
    PermissionDenied,
    RateLimited,
    ServerError,
    WaitTimeout,
)
from pipelines.jobs.errors import ServiceUnavailable


class ExitCode(enum.IntEnum):
    """What the shell sees."""

    OK = 0
    ERROR = 1
    USAGE = 2
    PARTIAL = 3  # the job ended, some items failed
    JOB_FAILED = 4  # the job failed, expired or was cancelled
    AUTH = 5
    TEMPORARY = 75  # try again later (sysexits.h, EX_TEMPFAIL)
    INTERRUPTED = 130


_OF_STATE = {"succeeded": ExitCode.OK, "partial": ExitCode.PARTIAL}


def of_job(state: str) -> ExitCode:
    """For a job that has ended."""
    return _OF_STATE.get(state, ExitCode.JOB_FAILED)


def of_error(error: Exception) -> ExitCode:
    """For an error that ends the command."""
    if isinstance(error, AuthenticationFailed | PermissionDenied):
        return ExitCode.AUTH
    if isinstance(error, RateLimited | ServerError | ConnectionFailed | WaitTimeout | ServiceUnavailable):
        return ExitCode.TEMPORARY
    if isinstance(error, ApiError) and error.code == "idempotency_in_flight":
        return ExitCode.TEMPORARY
    return ExitCode.ERROR
