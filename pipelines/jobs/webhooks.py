"""Webhooks by the Standard Webhooks specification: event types, bodies, signatures, secrets, and when to try again.

All of it is pure. An event is the JSON object `{id, object: "event", created_at, type, data}`; its `id` is the
`webhook-id` of every attempt, so a receiver that remembers ids takes each event once, however often it comes.
"""

from __future__ import annotations

import base64
import enum
import hashlib
import hmac
import json
import secrets
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from pipelines.jobs.states import JobState

MAX_BODY = 20_000
"""Bytes of an event; Standard Webhooks asks for less than 20 kB."""

SCHEDULE = (0.0, 5.0, 300.0, 1_800.0, 7_200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)
"""Seconds before each attempt, after the failure of the one before: ten attempts within about three days."""

JITTER = 0.1
"""A pause is longer by up to this share of itself, so that a receiver that comes back is not met by everybody."""

ALL_EVENTS = "*"
_SECRET_BYTES = 32
_PREFIX = "whsec_"


class EventType(enum.StrEnum):
    """What may be told of."""

    JOB_SUCCEEDED = "job.succeeded"
    JOB_PARTIAL = "job.partial"
    JOB_FAILED = "job.failed"
    JOB_CANCELLED = "job.cancelled"
    BATCH_COMPLETED = "batch.completed"
    BATCH_FAILED = "batch.failed"
    BATCH_EXPIRED = "batch.expired"
    BATCH_CANCELLED = "batch.cancelled"
    TEST = "webhook.test"


def event_of(state: JobState) -> EventType:
    """The event of a job that has ended."""
    return EventType(f"job.{state}")


def show_event(event_id: uuid.UUID) -> str:
    """An event's public id."""
    return f"evt_{event_id.hex}"


def event_body(event_id: uuid.UUID, event: EventType, created_at: datetime, data: Mapping[str, Any]) -> str:
    """The body as it is sent, below `MAX_BODY` bytes: where it would not be, `data.metadata` is null."""
    value = {
        "id": show_event(event_id),
        "object": "event",
        "created_at": int(created_at.timestamp()),
        "type": str(event),
        "data": dict(data),
    }
    body = json.dumps(value, separators=(",", ":"))
    if len(body) >= MAX_BODY and "metadata" in data:
        body = json.dumps({**value, "data": {**data, "metadata": None}}, separators=(",", ":"))
    if len(body) >= MAX_BODY:
        raise ValueError(f"an event of {len(body)} bytes; what it holds must be bounded where it is made")
    return body


def pause_before(attempt: int, uniform: Callable[[float, float], float]) -> float | None:
    """Seconds to wait before attempt number `attempt` (from 1); None: there is no such attempt.

    `uniform(a, b)` is the source of jitter (`random.uniform`), an argument so that the rule stays pure.
    """
    if attempt > len(SCHEDULE):
        return None
    pause = SCHEDULE[attempt - 1]
    return pause + uniform(0.0, pause * JITTER)


def new_secret() -> str:
    """A secret: `whsec_` and 32 random bytes in base64."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def secret_hint(secret: str) -> str:
    """What may be shown of a secret."""
    return f"{_PREFIX}…{secret[-4:]}"


def signature(active: Sequence[str], *, webhook_id: str, timestamp: int, body: str) -> str:
    """The header `webhook-signature`: one `v1,<base64>` for each active secret, separated by spaces."""
    signed = f"{webhook_id}.{timestamp}.{body}".encode()
    return " ".join(f"v1,{_sign(secret, signed)}" for secret in active)


def _sign(secret: str, signed: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(_PREFIX))
    return base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
