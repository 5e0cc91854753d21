"""The Python client, installed as the import package `batchsight`.

It stands alone (httpx2 and the standard library; nothing of the server), so its modules import each other relatively.
"""

from __future__ import annotations

from .asynchronous import AsyncClient
from .blocking import Client
from .errors import (
    ApiError,
    AuthenticationFailed,
    BatchsightError,
    ConfigurationError,
    Conflict,
    ConnectionFailed,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    RateLimited,
    ServerError,
    WaitTimeout,
)
from .estimating import Estimate
from .models import Export, Failure, File, Item, Job, KindInfo, Result, Usage, UsageReport
from .retry import RetryPolicy
from .schedule_models import PreviewTime, Schedule, ScheduleRun
from .webhook_models import WebhookAttempt, WebhookDelivery, WebhookEndpoint, WebhookTest

__all__ = [
    "ApiError",
    "AsyncClient",
    "AuthenticationFailed",
    "BatchsightError",
    "Client",
    "ConfigurationError",
    "Conflict",
    "ConnectionFailed",
    "Estimate",
    "Export",
    "Failure",
    "File",
    "InvalidRequest",
    "Item",
    "Job",
    "KindInfo",
    "NotFound",
    "PermissionDenied",
    "PreviewTime",
    "RateLimited",
    "Result",
    "RetryPolicy",
    "Schedule",
    "ScheduleRun",
    "ServerError",
    "Usage",
    "UsageReport",
    "WaitTimeout",
    "WebhookAttempt",
    "WebhookDelivery",
    "WebhookEndpoint",
    "WebhookTest",
]
