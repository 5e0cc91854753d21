"""What both clients share of HTTP: the configuration, and how a `Call` becomes a request and a response a `Reply`."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

import httpx2

from .calls import Call, Lost, Reply, Upload
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
    with _opened(call.upload) as content:
        arguments["data"] = dict(call.upload.fields)
        arguments["files"] = {"file": (call.upload.filename, content)}
        yield arguments


@contextlib.contextmanager
def _opened(upload: Upload) -> Iterator[bytes | IO[bytes]]:
    content = upload.content
    if isinstance(content, bytes) and upload.on_progress is None:
        yield content
        return
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as stream:
        yield stream if upload.on_progress is None else _Counted(stream, upload.on_progress)  # type: ignore[misc]  # as much of a file as is read


class _Counted:
    """A file that says how far it has been read."""

    def __init__(self, stream: IO[bytes], on_progress: Callable[[int, int], None]) -> None:
        self._stream = stream
        self._on_progress = on_progress
        self._size = stream.seek(0, os.SEEK_END)
        stream.seek(0)

    def read(self, size: int = -1) -> bytes:
        """Read, and say how far."""
        data = self._stream.read(size)
        self._on_progress(self._stream.tell(), self._size)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As the file's."""
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        """As the file's."""
        return self._stream.tell()


def reply_of(response: httpx2.Response, *, body: bytes | None = None) -> Reply:
    """Header names in lower case. `body`: instead of the response's own, which is read later."""
    return Reply(
        status=response.status_code,
        headers={name.lower(): value for name, value in response.headers.items()},
        body=response.content if body is None else body,
    )


def lost_of(error: httpx2.TransportError, base_url: str) -> Lost:
    """What is said when no answer came."""
    return Lost(reason=f"no answer from {base_url}: {type(error).__name__}: {error}".rstrip(": "), cause=error)
