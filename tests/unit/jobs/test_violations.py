"""What people are told of a value that fits none of its forms."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.jobs.violations import most_telling, place_of


class Text(BaseModel):
    type: Literal["text"]
    text: str


class Image(BaseModel):
    type: Literal["image"]
    url: str


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    role: str
    content: Annotated[str, Field(max_length=5)] | list[Annotated[Text | Image, Field(discriminator="type")]]


@pytest.mark.parametrize(
    ("value", "place", "said"),
    [
        ({"role": "a", "content": 7}, ("content",), "string"),
        ({"role": "a", "content": [{"type": "sound"}]}, ("content", "0"), "sound"),
        ({"role": "a", "content": [{"type": "text", "text": "x"}, 3]}, ("content", "1"), "dictionary"),
        ({"role": 1, "content": []}, ("role",), "string"),
        ({"role": "a", "content": "x", "more": 1}, ("more",), "not permitted"),
    ],
)
def test_the_complaint_names_the_place_in_what_was_sent(
    value: dict[str, Any], place: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        Message.model_validate(value)
    chosen = most_telling(caught.value.errors())
    assert place_of(chosen) == place
    assert said in chosen["msg"]
