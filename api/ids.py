"""How ids look outside: jobs as plain UUIDs, files as `file-<32 hex digits>`."""

from __future__ import annotations

import re
import uuid
from typing import Annotated

from pydantic import StringConstraints

from pipelines.jobs.errors import NotFound

_FILE = re.compile(r"\Afile-([0-9a-f]{32})\Z")

FileId = Annotated[str, StringConstraints(pattern=r"^file-[0-9a-f]{32}$")]
"""A file id in a request body."""


def show_file(file_id: uuid.UUID) -> str:
    """The public form of a file id."""
    return f"file-{file_id.hex}"


def file_uuid(text: str) -> uuid.UUID:
    """The UUID behind a public file id. Raises `NotFound`: an id of another form is nobody's file."""
    match = _FILE.match(text)
    if match is None:
        raise NotFound("there is no such file; file ids look like file-0123…")
    return uuid.UUID(match[1])


def show_url(url: str) -> str:
    """A media URL as clients know it."""
    if url.startswith("upload:"):
        return show_file(uuid.UUID(url.removeprefix("upload:")))
    return url
