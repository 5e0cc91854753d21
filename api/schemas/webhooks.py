"""Webhook endpoints, in OpenAI's form (times are seconds since 1970), and what became of each event."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from api.schemas.base import Answer, Moment, Request

EventName = Literal[
    "job.succeeded",
    "job.partial",
    "job.failed",
    "job.cancelled",
    "batch.completed",
    "batch.failed",
    "batch.expired",
    "batch.cancelled",
    "webhook.test",
]
DeliveryState = Literal["pending", "sending", "succeeded", "failed"]

_DAY = 86_400
# For the contract's readers: what refuses an address (`control.webhooks`) says better what to change than a pattern.
_PUBLIC = {"pattern": r'^https://(?:[a-z0-9]{1,40}\.){1,3}[a-z]{2,20}(?::[1-9][0-9]{0,3})?(?:/[!"$-~]{0,200})?$'}
_Name = Annotated[str, Field(max_length=200, description="yours, to know it by")]
_Address = Annotated[
    str,
    Field(
        min_length=1,
        max_length=2_048,
        description="https, on the public internet",
        examples=["https://example.com/hook"],
        json_schema_extra=_PUBLIC,
    ),
]
_Events = Annotated[
    list[EventName | Literal["*"]],
    Field(max_length=20, description="`*`: all, later ones too; none: only of jobs that name this endpoint"),
]


class EndpointRequest(Request):
    """A new endpoint."""

    url: _Address
    name: _Name = ""
    event_types: _Events = Field(default=["*"])


class EndpointChange(Request):
    """What is to change."""

    url: _Address | None = None
    name: _Name | None = None
    event_types: _Events | None = None
    enabled: bool | None = Field(None, description="false: nothing more is sent, and what waits fails")


class RotateRequest(Request):
    """For how long the old secret still signs beside the new one: the longer of both; without a word, no longer."""

    grace_seconds: int | None = Field(None, ge=0, le=7 * _DAY)
    keep_old_secret_active_for_24_hours: bool | None = None

    @property
    def grace(self) -> int:
        """Seconds."""
        return max(self.grace_seconds or 0, _DAY if self.keep_old_secret_active_for_24_hours else 0)


class TestRequest(Request):
    """Which event the sample looks like."""

    event_type: EventName = "webhook.test"


class ReplayRequest(Request):
    """From when on."""

    since: Moment


class Endpoint(Answer):
    """Where events are sent."""

    id: uuid.UUID
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    name: str
    url: str
    event_types: list[str]
    enabled: bool
    disabled_reason: str | None = None
    signing_secret_hint: str
    created_at: int
    updated_at: int


class EndpointWithSecret(Endpoint):
    """With its secret, shown this once."""

    signing_secret: str


class DeletedEndpoint(Answer):
    """An endpoint that is no more."""

    id: uuid.UUID
    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    deleted: Literal[True] = True


class Attempt(Answer):
    """One time that an event was sent. Without an end: it is being sent, or its sender died and it is sent again."""

    attempt: int
    started_at: datetime
    ended_at: datetime | None = None
    status_code: int | None = None
    error: str | None = None
    answer: str | None = Field(None, description="how the receiver's answer begins")


class Delivery(Answer):
    """What became of an event at an endpoint. `event_id` is the `webhook-id` of every attempt."""

    id: uuid.UUID
    object: Literal["webhook_delivery"] = "webhook_delivery"
    endpoint_id: uuid.UUID
    event_id: str
    event_type: str
    job_id: uuid.UUID | None = None
    state: DeliveryState
    next_attempt_at: datetime | None = Field(None, description="while pending")
    last_status_code: int | None = None
    last_error: str | None = None
    created_at: datetime
    finished_at: datetime | None = None
    attempts: list[Attempt]


class TestResult(Answer):
    """What the receiver said to a sample. `status_code` null: nothing; `error` says why."""

    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    webhook_endpoint_id: uuid.UUID
    delivery_id: uuid.UUID
    event_type: str
    success: bool
    status_code: int | None = None
    error: str | None = None


class Replayed(Answer):
    """How many events are sent again. `has_more`: call once more."""

    object: Literal["webhook_endpoint.replay"] = "webhook_endpoint.replay"
    replayed: int
    has_more: bool
