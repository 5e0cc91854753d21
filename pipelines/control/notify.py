"""Sends webhooks: the leader claims what is due, threads carry it, each records what came of it.

A slow receiver holds one of `concurrency` threads for 15 seconds at most, few at once for an endpoint and for a tenant,
and never the dispatcher's own loops. Claims are the leader's and check its epoch. Records are fenced by the delivery's
attempt alone: what was sent was sent, whoever leads by then. A sender killed between the two leaves a lease that runs
out, and the event is sent again under the same `webhook-id`: at least once, never less.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import structlog

from pipelines.control.courier import Answer
from pipelines.jobs.errors import StoreUnavailable
from pipelines.jobs.webhooks import pause_before
from pipelines.store import leader, webhook_deliveries, webhook_endpoints
from pipelines.store.leader import Epoch
from pipelines.store.session import Database
from pipelines.store.webhook_deliveries import Claimed

_log = structlog.get_logger(__name__)

_GONE = 410


@dataclass(frozen=True, kw_only=True)
class NotifyOptions:
    """How many at once: in all, to one endpoint, for one tenant. The lease outlasts the longest exchange."""

    concurrency: int = 16
    per_endpoint: int = 4
    lease: float = 60.0

    @property
    def per_tenant(self) -> int:
        """Half of all, so that another tenant's events always find room."""
        return max(1, self.concurrency // 2)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a delivery becomes. `pause` in seconds, for one that is tried again."""

    state: str
    pause: float = 0.0
    disable: bool = False


def decide(answer: Answer, *, attempt: int, once: bool, uniform: Callable[[float, float], float]) -> Decision:
    """The rule: 2xx is success, 410 disables the endpoint, anything else is tried again by the schedule."""
    if answer.error is None:
        return Decision(state="succeeded")
    if answer.status == _GONE:
        return Decision(state="failed", disable=True)
    pause = None if once else pause_before(attempt + 1, uniform)
    return Decision(state="failed") if pause is None else Decision(state="pending", pause=pause)


class Notifier:
    """`tick` is called by one thread; the sending happens on threads of its own. `sent` is called after each record."""

    def __init__(
        self,
        database: Database,
        send: Callable[[Claimed], Answer],
        *,
        options: NotifyOptions | None = None,
        sent: Callable[[str], None] | None = None,
    ) -> None:
        self._database = database
        self._send = send
        self._sent = sent
        self._options = options or NotifyOptions()
        self._pool = ThreadPoolExecutor(self._options.concurrency, thread_name_prefix="webhook")
        self._lock = threading.Lock()
        self._flying = 0

    @property
    def flying(self) -> int:
        """Deliveries that are being sent by this process."""
        with self._lock:
            return self._flying

    def tick(self, epoch: Epoch) -> int:
        """Claim what is due, as far as there are free threads, and send it; how many. Raises `LeaderLost`."""
        free = self._options.concurrency - self.flying
        if free <= 0:
            return 0
        with self._database.begin() as conn:
            leader.check(conn, epoch)
            claimed = webhook_deliveries.claim(
                conn,
                limit=free,
                per_endpoint=self._options.per_endpoint,
                per_tenant=self._options.per_tenant,
                lease=self._options.lease,
            )
        for one in claimed:
            with self._lock:
                self._flying += 1
            self._pool.submit(self._deliver, one)
        return len(claimed)

    def backlog(self) -> int:
        """Deliveries that are due and wait for a thread."""
        with self._database.begin() as conn:
            return webhook_deliveries.backlog(conn)

    def close(self) -> None:
        """Wait for what is being sent."""
        self._pool.shutdown(wait=True)

    def _deliver(self, claimed: Claimed) -> None:
        named = {"delivery_id": str(claimed.delivery_id), "attempt": claimed.attempt}
        try:
            answer = self._send(claimed)
            state = self._record(claimed, answer)
            _log.info("webhook_sent", **named, state=state, status=answer.status, error=answer.error)
            if self._sent is not None:
                self._sent(state)
        except StoreUnavailable as error:
            _log.warning("webhook_not_recorded", **named, error=error.message)  # its lease runs out: sent again
        except Exception:  # noqa: BLE001 - a defect must not end the thread in silence; the lease repeats the delivery
            _log.exception("webhook_raised", **named)
        finally:
            with self._lock:
                self._flying -= 1

    def _record(self, claimed: Claimed, answer: Answer) -> str:
        """Write down what came of it; the state it has now, or `lost` where its lease had run out meanwhile."""
        decision = decide(answer, attempt=claimed.attempt, once=claimed.once, uniform=random.uniform)
        disabled = False
        with self._database.begin() as conn:
            recorded = webhook_deliveries.record(
                conn,
                claimed,
                state=decision.state,
                status=answer.status,
                error=answer.error,
                answer=answer.text,
                pause=decision.pause,
            )
            if recorded and decision.disable:
                reason = "the receiver answered that it is gone (410)"
                disabled = webhook_endpoints.disable(conn, claimed.tenant_id, claimed.endpoint_id, reason=reason)
        if disabled:
            _log.warning(
                "webhook_endpoint_disabled", endpoint_id=str(claimed.endpoint_id), tenant_id=str(claimed.tenant_id)
            )
        return decision.state if recorded else "lost"
