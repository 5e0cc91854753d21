"""The pure part of webhooks: when, what, and signed how."""

from __future__ import annotations

import base64
import json
import random
import time
import uuid
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import InvalidWebhookSignatureError, OpenAI
from openai.types.webhooks import BatchCompletedWebhookEvent
from standardwebhooks import Webhook, WebhookVerificationError

from pipelines.jobs.states import JOB_TERMINAL
from pipelines.jobs.webhooks import (
    JITTER,
    MAX_BODY,
    SCHEDULE,
    EventType,
    event_body,
    event_of,
    new_secret,
    pause_before,
    secret_hint,
    show_event,
    signature,
)

EVENT = uuid.UUID("01890000-0000-7000-8000-000000000001")


def headers(body: str, *secrets: str, at: int | None = None) -> dict[str, str]:
    timestamp = int(time.time()) if at is None else at
    webhook_id = show_event(EVENT)
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signature(secrets, webhook_id=webhook_id, timestamp=timestamp, body=body),
    }


def body_of(event: EventType = EventType.BATCH_COMPLETED, **data: object) -> str:
    return event_body(EVENT, event, datetime(2026, 1, 2, tzinfo=UTC), {"id": "batch_1", **data})


@given(st.randoms(use_true_random=False))
def test_pauses_grow_and_are_longer_by_a_tenth_at_most(dice: random.Random) -> None:
    pauses = [pause_before(attempt, dice.uniform) for attempt in range(1, len(SCHEDULE) + 1)]
    known = [pause for pause in pauses if pause is not None]
    assert len(known) == 10
    assert known == sorted(known)
    assert all(least <= pause <= least * (1 + JITTER) for least, pause in zip(SCHEDULE, known, strict=True))


def test_the_first_attempt_is_at_once_and_there_is_no_eleventh() -> None:
    assert pause_before(1, random.uniform) == 0
    assert pause_before(11, random.uniform) is None
    assert sum(SCHEDULE) < 4 * 86_400


def test_a_secret_has_32_random_bytes_and_is_not_in_its_hint() -> None:
    secrets = {new_secret() for _ in range(50)}
    assert len(secrets) == 50
    for secret in secrets:
        assert len(base64.b64decode(secret.removeprefix("whsec_"))) == 32
        assert len(secret_hint(secret)) < 15


@given(st.text(max_size=200))
def test_signatures_are_verified_by_the_standard_package(word: str) -> None:
    secret, body = new_secret(), body_of(word=word)
    assert Webhook(secret).verify(body, headers(body, secret)) == json.loads(body)


def test_during_a_rotation_the_old_secret_and_the_new_one_both_verify() -> None:
    old, new, body = new_secret(), new_secret(), body_of()
    sent = headers(body, new, old)
    assert Webhook(old).verify(body, sent)
    assert Webhook(new).verify(body, sent)
    with pytest.raises(WebhookVerificationError):
        Webhook(new_secret()).verify(body, sent)


def test_openai_s_client_unwraps_a_batch_s_event() -> None:
    secret, body = new_secret(), body_of()
    client = OpenAI(api_key="bs_x", webhook_secret=secret)
    event = client.webhooks.unwrap(body, headers(body, new_secret(), secret))
    assert isinstance(event, BatchCompletedWebhookEvent)
    assert event.object == "event"
    assert event.data.id == "batch_1"
    assert event.id == show_event(EVENT)
    for sent in (headers(body, new_secret()), headers(body, secret, at=int(time.time()) - 3_600)):
        with pytest.raises(InvalidWebhookSignatureError):
            client.webhooks.unwrap(body, sent)


@given(st.dictionaries(st.text(max_size=50), st.text(max_size=2_000), max_size=30))
def test_a_body_stays_small_whatever_the_metadata(metadata: dict[str, str]) -> None:
    body = body_of(metadata=metadata)
    assert len(body.encode()) < MAX_BODY
    assert json.loads(body)["data"]["metadata"] in (metadata, None)


def test_every_end_of_a_job_has_its_event() -> None:
    assert {str(event_of(state)) for state in JOB_TERMINAL} == {
        "job.succeeded",
        "job.partial",
        "job.failed",
        "job.cancelled",
    }
