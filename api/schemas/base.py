"""What all schemas share."""

from __future__ import annotations

import json
import re
import uuid
from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

T = TypeVar("T")

BUCKET = "s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/"
"""How an address in S3 begins, as a pattern."""

Id = Annotated[uuid.UUID, Field(strict=False)]
"""A UUID in a request body, where it is a string."""


def _moment(value: object) -> object:
    """Pydantic would take a number for seconds since 1970; the schema says a date and time."""
    if isinstance(value, datetime):
        return value
    if not isinstance(value, str) or not _DATE_TIME.match(value):
        raise ValueError("write a time with its zone, such as 2026-01-31T00:00:00Z")
    try:
        return datetime.fromisoformat(value)
    except ValueError as error:
        raise ValueError(f"this is no time ({error}); write one such as 2026-01-31T00:00:00Z") from error


Moment = Annotated[AwareDatetime, BeforeValidator(_moment)]
"""A time with a zone (RFC 3339)."""

_MOST_METADATA = 16 * 1024
_DATE_TIME = re.compile(r"\A\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d")


class Request(BaseModel):
    """A request body: unknown fields are errors, for a misspelt option must not be dropped in silence.

    Strict: `true` is no number and `"6"` neither, as the schema says.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Answer(BaseModel):
    """An answer."""

    model_config = ConfigDict(frozen=True)


class Page(Answer, Generic[T]):
    """One page of a listing; the next starts behind `last_id`."""

    object: Literal["list"] = "list"
    data: list[T]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


class OpenAiError(Answer):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None = None
    code: str


class Problem(Answer):
    """Every error: an RFC 9457 problem and OpenAI's error in one body."""

    model_config = ConfigDict(
        frozen=True,
        json_schema_extra={
            "example": {
                "type": "urn:batchsight:error:invalid_parameter",
                "title": "Unprocessable Content",
                "status": 422,
                "detail": "parameters.max_tiles: Input should be less than or equal to 40",
                "instance": "/v1/jobs",
                "error": {
                    "message": "parameters.max_tiles: Input should be less than or equal to 40",
                    "type": "invalid_request_error",
                    "param": "parameters.max_tiles",
                    "code": "invalid_parameter",
                },
            }
        },
    )

    type: str
    title: str
    status: int
    detail: str
    instance: str
    error: OpenAiError
    errors: list[dict[str, Any]] | None = Field(None, description="every violation, where the body broke its schema")


def _small(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    if len(json.dumps(value)) > _MOST_METADATA:
        raise ValueError(f"metadata may hold {_MOST_METADATA} bytes as JSON; store more elsewhere and refer to it here")
    return value


Metadata = Annotated[
    dict[str, JsonValue],
    AfterValidator(_small),
    Field(description="anything of yours, up to 16 KiB; jobs can be listed by it"),
]
