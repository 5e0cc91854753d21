"""A dry run: what a job would be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .calls import Call, Operation
from .models import Json
from .reading import Core, json_of
from .retry import exchange


@dataclass(frozen=True, kw_only=True)
class Range:
    """`expected` as lately; `most` by the parameters, None while pages are uncounted."""

    expected: int
    most: int | None = None


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a job would be; of the part that was listed, where `complete` is false.

    Seconds and `cost` are None where nothing tells them. `basis` says where the expectation comes from.
    """

    kind: str
    complete: bool
    documents: int
    documents_to_page: int
    unusable: int
    skipped: int
    bytes: int | None
    items: Range
    tiles: Range
    prompt_tokens: Range
    completion_tokens: Range
    device_seconds: float | None
    seconds: float | None
    cost: float | None
    basis: Json

    @classmethod
    def from_json(cls, value: Json) -> Estimate:
        """From the server's form."""
        return cls(
            kind=value["kind"],
            complete=value["complete"],
            documents=value["documents"],
            documents_to_page=value["documents_to_page"],
            unusable=value["unusable"],
            skipped=value["skipped"],
            bytes=value.get("bytes"),
            items=_range(value["items"]),
            tiles=_range(value["tiles"]),
            prompt_tokens=_range(value["prompt_tokens"]),
            completion_tokens=_range(value["completion_tokens"]),
            device_seconds=value.get("device_seconds"),
            seconds=value.get("seconds"),
            cost=value.get("cost"),
            basis=value["basis"],
        )


def estimate(
    core: Core, kind: str, *, source: Mapping[str, Any], parameters: Mapping[str, Any] | None = None
) -> Operation[Estimate]:
    """Count and estimate a job without making it (a dry run); nothing is stored."""
    body = {"kind": kind, "source": dict(source), "parameters": dict(parameters or {}), "dry_run": True}
    reply = yield from exchange(Call(method="POST", path="/v1/jobs", json=body), core.retry)
    return Estimate.from_json(json_of(reply))


def _range(value: Json) -> Range:
    return Range(expected=value["expected"], most=value.get("most"))
