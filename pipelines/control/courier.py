"""Carries one event to one receiver: a guarded POST that ends in its time whatever the other side does.

Addresses come from strangers: https alone, every resolved address global, the connection pinned to the one that was
checked, no redirects, no proxy (`pipelines.media.ssrf`). httpx's time-outs are of each single read, so a receiver that
drips a byte now and then would hold a thread for days: at the end of the time the connection is shut from outside.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

import httpx2

from pipelines.jobs.errors import BatchsightError, ConfigurationError
from pipelines.jobs.webhooks import signature
from pipelines.media.ssrf import AddressPolicy, guarded_client
from pipelines.store.webhook_deliveries import Claimed

CONNECT_SECONDS = 5.0
TOTAL_SECONDS = 15.0
MAX_ANSWER = 4_096
_SHOWN_ANSWER = 1_000


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the receiver said. `status` None: nothing; `error` None: it took the event; `text`: its first words."""

    status: int | None = None
    error: str | None = None
    text: str = ""


def address_policy(*, plain_http: bool, networks: Sequence[str]) -> AddressPolicy:
    """What webhooks may reach by the installation's settings. Raises `ConfigurationError`."""
    try:
        return AddressPolicy(allow_http=plain_http, networks=tuple(ip_network(network) for network in networks))
    except ValueError as error:
        raise ConfigurationError(f"BATCHSIGHT_WEBHOOK_NETWORKS holds a network that is none: {error}") from error


class Courier:
    """Safe for threads; close it when done. Times in seconds."""

    def __init__(
        self,
        policy: AddressPolicy,
        *,
        connect_seconds: float = CONNECT_SECONDS,
        total_seconds: float = TOTAL_SECONDS,
        ca_file: str | None = None,
    ) -> None:
        self._total = total_seconds
        self._client = guarded_client(
            max_redirects=0,
            policy=policy,
            connect_seconds=connect_seconds,
            idle_seconds=total_seconds,
            ca_file=ca_file,
        )

    def send(self, claimed: Claimed) -> Answer:
        """Sign and POST; what came of it. Never raises for what the receiver, or the way to it, does."""
        with _Cutoff(self._total) as cutoff:
            try:
                return self._exchange(claimed, cutoff)
            except BatchsightError as error:
                return Answer(error=error.message)
            except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
                late = cutoff.passed or isinstance(error, httpx2.TimeoutException)
                return Answer(error=self._late() if late else f"no answer: {type(error).__name__}: {error}")

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _exchange(self, claimed: Claimed, cutoff: _Cutoff) -> Answer:
        with self._client.stream(
            "POST",
            claimed.url,
            content=claimed.body.encode(),
            headers=_headers(claimed),
            extensions={"trace": cutoff.trace},
        ) as response:
            status, text = response.status_code, _beginning(response, cutoff)
        if 200 <= status < 300:
            return Answer(status=status, text=text)
        if 300 <= status < 400:
            return Answer(status=status, text=text, error=f"answered with a redirect ({status}); none is followed")
        return Answer(status=status, text=text, error=f"answered with status {status}")

    def _late(self) -> str:
        return f"no whole answer within {self._total:g} seconds"


def _headers(claimed: Claimed) -> Mapping[str, str]:
    return {
        "content-type": "application/json",
        "webhook-id": claimed.webhook_id,
        "webhook-timestamp": str(claimed.sent_at),
        "webhook-signature": signature(
            claimed.secrets, webhook_id=claimed.webhook_id, timestamp=claimed.sent_at, body=claimed.body
        ),
    }


def _beginning(response: httpx2.Response, cutoff: _Cutoff) -> str:
    """The first words of the body; no more of it is read. The status has been said: a torn body changes nothing."""
    body = b""
    with contextlib.suppress(httpx2.HTTPError):
        for piece in response.iter_raw(1_024):
            body += piece
            if len(body) >= MAX_ANSWER or cutoff.passed:
                break
    return body[:MAX_ANSWER].decode("utf-8", "replace")[:_SHOWN_ANSWER]


class _Cutoff:
    """Shuts the connection of one exchange when its time is over."""

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds
        self._timer = threading.Timer(seconds, self._shut)
        self._timer.daemon = True
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._closed = False

    @property
    def passed(self) -> bool:
        """True once the time is over."""
        return time.monotonic() >= self._until

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """httpx's trace: the connection as soon as there is one, before TLS and before any byte."""
        if event != "connection.connect_tcp.complete":
            return
        with self._lock:
            if not self._closed:
                # A second handle on the connection: TLS takes the first one over.
                self._socket = info["return_value"].get_extra_info("socket").dup()
        if self.passed:
            self._shut()

    def _shut(self) -> None:
        with self._lock:
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> _Cutoff:
        self._timer.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._timer.cancel()
        with self._lock:
            self._closed = True
            if self._socket is not None:
                self._socket.close()
