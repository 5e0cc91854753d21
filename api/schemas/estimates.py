"""What a dry run answers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from api.schemas.base import Answer


class Range(Answer):
    """`expected` as lately; `most` by the parameters, null while pages are uncounted."""

    expected: int
    most: int | None = None


class Basis(Answer):
    """Where the expectation comes from: results of your own jobs, of everybody's, or the limits of the parameters."""

    of: Literal["tenant", "installation", "limits"]
    jobs: int
    results: int
    items_a_document: float = Field(description="of documents whose pages are not counted yet")
    engines: int = Field(description="engine workers alive now")


class Estimate(Answer):
    """What a job would be. Where the source was not listed to its end (`complete` false), of the part that was."""

    object: Literal["estimate"] = "estimate"
    kind: str
    complete: bool = Field(description="false: the source holds more than a dry run lists")
    documents: int
    documents_to_page: int = Field(description="of these, so many have pages that only opening them would count")
    unusable: int = Field(description="entries that would fail at once")
    skipped: int = Field(description="names of media that this kind does not read")
    bytes: int | None = Field(None, description="of the documents whose size the listing told; null: it told none")
    items: Range
    tiles: Range
    prompt_tokens: Range
    completion_tokens: Range
    device_seconds: float | None = Field(None, description="null where no result tells it")
    seconds: float | None = Field(None, description="on the engines alive now, without what waits before it")
    cost: float | None = None
    basis: Basis
