"""What the operations share: answers read as JSON, pages, ids and queries."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from .calls import Call, Emit, Listing, Reply
from .errors import ConnectionFailed, InvalidRequest
from .retry import RetryPolicy, exchange

_PAGE = 200


class Core(Protocol):
    """What an operation needs to know of its client."""

    retry: RetryPolicy


def pages(core: Core, path: str, query: Mapping[str, Any], read: Callable[[Mapping[str, Any]], Any]) -> Listing[Any]:
    """Every entry of a listing; pages are fetched as they are needed."""
    after: str | None = None
    while True:
        page_query = {**query, "limit": str(_PAGE), **given({"after": after})}
        page = json_of((yield from exchange(Call(method="GET", path=path, query=page_query), core.retry)))
        for entry in page["data"]:
            yield Emit(read(entry))
        after = page.get("last_id")
        if not page["has_more"] or after is None:
            return


def json_of(reply: Reply) -> dict[str, Any]:
    """The answer as an object. Raises `ConnectionFailed` where it is none: somebody else answers at this address."""
    try:
        value = json.loads(reply.body)
    except ValueError as error:
        raise ConnectionFailed("the server's answer is not JSON; is this address a Batchsight api?") from error
    if not isinstance(value, dict):
        raise ConnectionFailed("the server's answer is not an object; is this address a Batchsight api?")
    return value


def given(query: Mapping[str, str | None]) -> dict[str, str]:
    """What was given."""
    return {name: value for name, value in query.items() if value is not None}


def id_of(value: str) -> str:
    """Only what an id may hold: an id never changes the path."""
    text = str(value)
    if not text or not all(character.isalnum() or character in "-_" for character in text):
        raise InvalidRequest(f"{text!r} is not an id", status=400, code="invalid_parameter", param="id")
    return text
