"""What all schemas share."""

from __future__ import annotations

import json
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue

T = TypeVar("T")

_MOST_METADATA = 16 * 1024


class Request(BaseModel):
    """A request body: unknown fields are errors, for a misspelt option must not be dropped in silence."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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
