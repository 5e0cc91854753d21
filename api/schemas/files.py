"""Files, in OpenAI's form."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from api.schemas.base import Answer, Request

Purpose = Literal["user_data", "vision", "batch", "batch_output"]


class File(Answer):
    """An uploaded file. Times are seconds since 1970."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["uploaded", "processed", "error"]
    expires_at: int | None = None
    status_details: str | None = None


class DeletedFile(Answer):
    """A file that is no more."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class PresignRequest(Request):
    """A large file that goes straight to the object store."""

    filename: str = Field(min_length=1, max_length=255)
    purpose: Literal["user_data", "vision", "batch"] = "user_data"
    bytes: int = Field(ge=0, description="its size; checked when the upload is completed")
    media_type: str | None = Field(None, max_length=255)


class PresignedUpload(Answer):
    """Where to PUT the bytes. Then call `complete_url`."""

    file: File
    url: str
    method: Literal["PUT"] = "PUT"
    headers: dict[str, str]
    expires_at: int
    complete_url: str
