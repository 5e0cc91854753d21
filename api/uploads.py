"""From a request's body to a stored blob, streamed."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

import anyio
import anyio.from_thread
import anyio.to_thread
from fastapi import Request

from api.multipart import MultipartStream
from api.services import Services
from pipelines.blobs.base import BlobStat
from pipelines.jobs.errors import InvalidParameter

_CONCURRENT = anyio.CapacityLimiter(32)


@dataclass(frozen=True, kw_only=True)
class Received:
    """A stored upload and the fields that came with it."""

    blob_key: str
    size: int
    sha256: str
    filename: str
    media_type: str
    fields: dict[str, str]


def blob_key(tenant_id: uuid.UUID, file_id: uuid.UUID) -> str:
    """Where a file's bytes lie."""
    return f"files/{tenant_id}/{file_id}"


async def receive(services: Services, request: Request, key: str) -> Received:
    """Store the form's file under `key`. A form that turns out to be broken leaves no blob behind."""
    stream = request.stream()

    async def next_chunk() -> bytes | None:
        return await anext(stream, None)

    form = MultipartStream(request.headers.get("content-type", ""), lambda: anyio.from_thread.run(next_chunk))

    def store() -> BlobStat:
        stat = services.blobs.put(key, form.file_pieces())
        try:
            form.finish()
        except BaseException:
            services.blobs.delete(key)
            raise
        return stat

    stat = await anyio.to_thread.run_sync(store, limiter=_CONCURRENT)
    return Received(
        blob_key=key,
        size=stat.size,
        sha256=stat.sha256 or "",
        filename=form.filename,
        media_type=form.media_type,
        fields=form.fields,
    )


def expiry_seconds(fields: dict[str, str]) -> int | None:
    """`expires_after[anchor]` and `expires_after[seconds]`, as OpenAI's clients send them."""
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    if anchor not in {None, "created_at"}:
        raise InvalidParameter("expires_after[anchor] must be created_at", param="expires_after.anchor")
    if seconds is None or not seconds.isascii() or not seconds.isdigit() or not 3_600 <= int(seconds) <= 2_592_000:
        raise InvalidParameter(
            "expires_after[seconds] must be 3600 (an hour) to 2592000 (30 days)", param="expires_after.seconds"
        )
    return int(seconds)
