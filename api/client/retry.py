"""When a call is sent again."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

from .calls import Answer, Call, Lost, Operation, Pause, Reply
from .errors import ApiError, BatchsightError, ConnectionFailed, error_of

_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Up to `retries` further attempts; `Retry-After` is honoured, else full jitter up to `base * 2**n` seconds."""

    retries: int = 5
    base: float = 0.5
    cap: float = 20.0
    uniform: Callable[[float, float], float] = random.uniform

    def pause(self, attempt: int, retry_after: float | None) -> float:
        """Seconds before attempt `attempt + 2`."""
        if retry_after is not None:
            return retry_after
        return self.uniform(0.0, min(self.cap, self.base * 2.0**attempt))


def exchange(call: Call, policy: RetryPolicy) -> Operation[Reply]:
    """Send until there is an answer below 400. Raises `ApiError` or `ConnectionFailed`."""
    for attempt in itertools.count():
        answer = yield call
        if isinstance(answer, Reply) and answer.status < 400:
            return answer
        failure = _failure(answer)
        if attempt >= policy.retries or not call.repeatable or not _worth_it(answer, failure):
            raise failure
        yield Pause(seconds=policy.pause(attempt, getattr(failure, "retry_after", None)))
    raise AssertionError("unreachable: the count does not end")


def _failure(answer: Answer) -> BatchsightError:
    if isinstance(answer, Reply):
        return error_of(answer.status, answer.headers, answer.body)
    if not isinstance(answer, Lost):
        return ConnectionFailed("no answer")
    failure = ConnectionFailed(answer.reason)
    failure.__cause__ = answer.cause
    return failure


def _worth_it(answer: Answer, failure: BatchsightError) -> bool:
    if not isinstance(answer, Reply):
        return True
    said = answer.headers.get("x-should-retry")
    if said in {"true", "false"}:
        return said == "true"
    in_flight = isinstance(failure, ApiError) and failure.code == "idempotency_in_flight"
    return in_flight or answer.status in _RETRIED
