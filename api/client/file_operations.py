"""Operations on uploaded files."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from pathlib import Path

from .calls import Call, Listing, Operation, Upload
from .models import File
from .reading import Core, given, id_of, json_of, pages
from .retry import exchange

_TIMEOUT = 3_600.0


def upload(
    core: Core,
    content: str | PathLike[str] | bytes,
    *,
    filename: str | None = None,
    purpose: str = "user_data",
    expires_after: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Operation[File]:
    """Upload a file (a path, or bytes with a `filename`). `expires_after`: seconds until it is deleted.

    `on_progress` is called with the bytes sent so far and all there are; a repeated attempt begins again at none.
    """
    path = None if isinstance(content, bytes) else Path(content)
    fields = {"purpose": purpose}
    if expires_after is not None:
        fields |= {"expires_after[anchor]": "created_at", "expires_after[seconds]": str(expires_after)}
    part = Upload(
        filename=filename or (path.name if path else "upload"),
        content=content if isinstance(content, bytes) else Path(content),
        fields=fields,
        on_progress=on_progress,
    )
    call = Call(method="POST", path="/v1/files", upload=part, timeout=_TIMEOUT)
    return File.from_json(json_of((yield from exchange(call, core.retry))))


def file(core: Core, file_id: str) -> Operation[File]:
    """What is known of an uploaded file."""
    reply = yield from exchange(Call(method="GET", path=f"/v1/files/{id_of(file_id)}"), core.retry)
    return File.from_json(json_of(reply))


def files(core: Core, *, purpose: str | None = None, order: str | None = None) -> Listing[File]:
    """All uploaded files, newest first, or with `order="asc"` oldest first."""
    yield from pages(core, "/v1/files", given({"purpose": purpose, "order": order}), File.from_json)


def delete_file(core: Core, file_id: str) -> Operation[None]:
    """Delete an uploaded file."""
    yield from exchange(Call(method="DELETE", path=f"/v1/files/{id_of(file_id)}"), core.retry)


def file_content(core: Core, file_id: str) -> Operation[bytes]:
    """The bytes of an uploaded file; `download` writes large ones to a path."""
    call = Call(method="GET", path=f"/v1/files/{id_of(file_id)}/content", timeout=_TIMEOUT)
    reply = yield from exchange(call, core.retry)
    return reply.body
