"""Answers in OpenAI's form."""

from __future__ import annotations

from typing import Literal

from api.schemas.base import Answer


class Model(Answer):
    """A model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(Answer):
    """All models."""

    object: Literal["list"] = "list"
    data: list[Model]
