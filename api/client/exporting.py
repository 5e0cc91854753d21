"""The operations of `client.exports`."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

from .calls import Call, Listing, Operation, Pause
from .errors import WaitTimeout
from .models import Export
from .reading import Core, id_of, json_of, pages
from .retry import exchange

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 5.0
_DOWNLOAD_TIMEOUT = 3_600.0


def create(
    core: Core,
    job_id: str,
    url: str | None = None,
    *,
    idempotency_key: str | None = None,
    format: str = "jsonl",  # noqa: A002 - the server's word
    compression: str | None = None,
    content: str | None = None,
    shard_rows: int | None = None,
    shard_bytes: int | None = None,
) -> Operation[Export]:
    """Export a job's results to `s3://bucket/prefix/`, or (None) to the installation's own store.

    `format`: jsonl, parquet or files (one a result: `content` markdown, text or json); `compression`: none, gzip, zstd.
    It starts when the job ends.
    """
    body: dict[str, Any] = {
        "url": url,
        "format": format,
        "compression": compression,
        "content": content,
        "shard_rows": shard_rows,
        "shard_bytes": shard_bytes,
    }
    body = {name: value for name, value in body.items() if value is not None}
    call = Call(
        method="POST",
        path=_path(job_id),
        json=body,
        headers={"idempotency-key": idempotency_key or str(uuid.uuid4())},
    )
    return Export.from_json(json_of((yield from exchange(call, core.retry))))


def export(core: Core, job_id: str, export_id: str) -> Operation[Export]:
    """The export as it is now. Raises `NotFound`."""
    call = Call(method="GET", path=_path(job_id, export_id))
    return Export.from_json(json_of((yield from exchange(call, core.retry))))


def exports(core: Core, job_id: str) -> Listing[Export]:
    """All exports of the job, newest first."""
    yield from pages(core, _path(job_id), {}, Export.from_json)


def wait(
    core: Core,
    job_id: str,
    export_id: str,
    *,
    timeout: float | None = None,
    on_update: Callable[[Export], None] | None = None,
) -> Operation[Export]:
    """Ask until the export has ended. `timeout` in seconds (None: for ever); raises `WaitTimeout`."""
    until = None if timeout is None else time.monotonic() + timeout
    pause = _FIRST_PAUSE
    while True:
        latest = yield from export(core, job_id, export_id)
        if on_update is not None:
            on_update(latest)
        if latest.finished:
            return latest
        if until is not None and time.monotonic() + pause > until:
            raise WaitTimeout(f"the export is still {latest.state} after {timeout:g} seconds; it goes on")
        yield Pause(seconds=pause)
        pause = min(_LONGEST_PAUSE, pause * 1.5)


def cancel(core: Core, job_id: str, export_id: str) -> Operation[Export]:
    """End an export now."""
    call = Call(method="POST", path=f"{_path(job_id, export_id)}/cancel")
    return Export.from_json(json_of((yield from exchange(call, core.retry))))


def content(core: Core, job_id: str, export_id: str, name: str = "manifest.json") -> Operation[bytes]:
    """A part of an export in the installation's own store: the manifest, or what it names."""
    call = Call(
        method="GET", path=f"{_path(job_id, export_id)}/content", query={"name": name}, timeout=_DOWNLOAD_TIMEOUT
    )
    reply = yield from exchange(call, core.retry)
    return reply.body


def _path(job_id: str, export_id: str | None = None) -> str:
    path = f"/v1/jobs/{id_of(job_id)}/exports"
    return path if export_id is None else f"{path}/{id_of(export_id)}"
