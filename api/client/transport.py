"""What both clients share of HTTP: the configuration, and how a `Call` becomes a request and a response a `Reply`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx2

from .calls import Call, Lost, Reply
from .errors import ConfigurationError

DEFAULT_URL = "http://127.0.0.1:8080"
_USER_AGENT = "batchsight-python/0.1"


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where the server is and how to speak to it. `timeout` in seconds."""

    base_url: str
    headers: dict[str, str]
    timeout: float


def address(base_url: str | None, api_key: str | None, timeout: float) -> Address:
    """From arguments, else from `BATCHSIGHT_URL` and `BATCHSIGHT_API_KEY`. Raises `ConfigurationError`."""
    url = (base_url or os.environ.get("BATCHSIGHT_URL") or DEFAULT_URL).rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise ConfigurationError(f"{url!r} is no address; write http://host:port or https://host")
    key = api_key or os.environ.get("BATCHSIGHT_API_KEY")
    headers = {"user-agent": _USER_AGENT}
    if key:
        headers["authorization"] = f"Bearer {key}"
    return Address(base_url=url.removesuffix("/v1"), headers=headers, timeout=timeout)


@contextlib.contextmanager
def request_arguments(call: Call, default_timeout: float) -> Iterator[dict[str, Any]]:
    """Keyword arguments for `httpx2.Client.request`; an uploaded path is open inside the context."""
    arguments: dict[str, Any] = {
        "method": call.method,
        "url": call.path,
        "params": dict(call.query),
        "headers": dict(call.headers),
        "timeout": httpx2.Timeout(call.timeout or default_timeout, connect=10.0),
    }
    if call.json is not None:
        arguments["json"] = call.json
    if call.upload is None:
        yield arguments
        return
    with _opened(call.upload.content) as content:
        arguments["data"] = dict(call.upload.fields)
        arguments["files"] = {"file": (call.upload.filename, content)}
        yield arguments


@contextlib.contextmanager
def _opened(content: bytes | Path) -> Iterator[bytes | IO[bytes]]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as stream:
        yield stream


def reply_of(response: httpx2.Response) -> Reply:
    """Header names in lower case."""
    return Reply(
        status=response.status_code,
        headers={name.lower(): value for name, value in response.headers.items()},
        body=response.content,
    )


def lost_of(error: httpx2.TransportError, base_url: str) -> Lost:
    """What is said when no answer came."""
    return Lost(reason=f"no answer from {base_url}: {type(error).__name__}: {error}".rstrip(": "), cause=error)
