"""Webhook endpoints and deliveries, as frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

Json = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class WebhookEndpoint:
    """Where events are sent. `secret` is set once, by `create` and `rotate`; `event_types`: `*` is all."""

    id: str
    url: str
    name: str
    event_types: tuple[str, ...]
    enabled: bool
    disabled_reason: str | None
    secret_hint: str
    created_at: datetime
    updated_at: datetime
    secret: str | None = None

    @classmethod
    def from_json(cls, value: Json) -> WebhookEndpoint:
        """From the server's form."""
        return cls(
            id=value["id"],
            url=value["url"],
            name=value["name"],
            event_types=tuple(value["event_types"]),
            enabled=value["enabled"],
            disabled_reason=value.get("disabled_reason"),
            secret_hint=value["signing_secret_hint"],
            created_at=datetime.fromtimestamp(value["created_at"]).astimezone(),
            updated_at=datetime.fromtimestamp(value["updated_at"]).astimezone(),
            secret=value.get("signing_secret"),
        )


@dataclass(frozen=True, kw_only=True)
class WebhookAttempt:
    """One time that an event was sent; without `ended_at` it is being sent, or its sender died."""

    attempt: int
    started_at: datetime
    ended_at: datetime | None
    status_code: int | None
    error: str | None
    answer: str | None

    @classmethod
    def from_json(cls, value: Json) -> WebhookAttempt:
        """From the server's form."""
        return cls(
            attempt=value["attempt"],
            started_at=datetime.fromisoformat(value["started_at"]),
            ended_at=_time(value, "ended_at"),
            status_code=value.get("status_code"),
            error=value.get("error"),
            answer=value.get("answer"),
        )


@dataclass(frozen=True, kw_only=True)
class WebhookDelivery:
    """What became of an event at an endpoint. `state`: pending, sending, succeeded or failed."""

    id: str
    endpoint_id: str
    event_id: str
    event_type: str
    job_id: str | None
    state: str
    next_attempt_at: datetime | None
    last_status_code: int | None
    last_error: str | None
    created_at: datetime
    finished_at: datetime | None
    attempts: tuple[WebhookAttempt, ...]

    @classmethod
    def from_json(cls, value: Json) -> WebhookDelivery:
        """From the server's form."""
        return cls(
            id=value["id"],
            endpoint_id=value["endpoint_id"],
            event_id=value["event_id"],
            event_type=value["event_type"],
            job_id=value.get("job_id"),
            state=value["state"],
            next_attempt_at=_time(value, "next_attempt_at"),
            last_status_code=value.get("last_status_code"),
            last_error=value.get("last_error"),
            created_at=datetime.fromisoformat(value["created_at"]),
            finished_at=_time(value, "finished_at"),
            attempts=tuple(WebhookAttempt.from_json(one) for one in value["attempts"]),
        )


@dataclass(frozen=True, kw_only=True)
class WebhookTest:
    """What the receiver said to a sample; `error` says why where it said nothing good."""

    endpoint_id: str
    delivery_id: str
    event_type: str
    success: bool
    status_code: int | None
    error: str | None

    @classmethod
    def from_json(cls, value: Json) -> WebhookTest:
        """From the server's form."""
        return cls(
            endpoint_id=value["webhook_endpoint_id"],
            delivery_id=value["delivery_id"],
            event_type=value["event_type"],
            success=value["success"],
            status_code=value.get("status_code"),
            error=value.get("error"),
        )


def _time(value: Json, name: str) -> datetime | None:
    text = value.get(name)
    return None if text is None else datetime.fromisoformat(text)
