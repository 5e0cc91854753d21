"""Reads JSON bodies strictly: what PostgreSQL cannot hold, or no two parsers read alike, is refused at the door.

Python's parser accepts `NaN`, and strings with NUL or lone surrogates, which a `jsonb` column does not; and deep
nesting ends in a RecursionError. Routes that take a body use `StrictRoute`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi import Request, Response
from fastapi.routing import APIRoute

from api.errors import UnreadableBody

_DEEPEST = 64
_EXACT = 2**53  # whole numbers up to here are exact in a double
_LONGEST_NUMBER = 300  # digits; a double has no more before its point


class StrictRequest(Request):
    """A request whose JSON is checked as it is parsed."""

    async def json(self) -> Any:
        """The parsed body. Raises `JSONDecodeError` or `UnreadableBody`."""
        if not hasattr(self, "_json"):
            self._json = loads(await self.body())
        return self._json


class StrictRoute(APIRoute):
    """A route that parses bodies by `StrictRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, given the stricter request."""
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(StrictRequest(request.scope, request.receive))

        return strict


def loads(body: bytes) -> Any:
    """Parse strictly. Raises `JSONDecodeError` for bad syntax and `UnreadableBody` for what cannot be stored."""
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise UnreadableBody("the body is not UTF-8") from error
    try:
        value = json.loads(text, parse_constant=_no_constant, parse_int=_integer, parse_float=_number)
    except RecursionError as error:
        raise UnreadableBody(f"the body is nested deeper than {_DEEPEST} levels") from error
    _check(value, 0)
    return value


def _no_constant(name: str) -> NoReturn:
    raise UnreadableBody(f"{name} is not JSON; leave the field out or send null")


def _integer(text: str) -> int:
    if len(text) > _LONGEST_NUMBER:
        raise UnreadableBody(f"a number has more than {_LONGEST_NUMBER} digits")
    return int(text)


def _number(text: str) -> float:
    """`8.0` is an integer to JSON Schema, and so it is here."""
    value = float(text)
    if value in {float("inf"), float("-inf")}:
        raise UnreadableBody(f"the number {text[:40]} is out of range")
    return int(value) if value.is_integer() and abs(value) <= _EXACT else value


def _check(value: Any, depth: int) -> None:
    if depth > _DEEPEST:
        raise UnreadableBody(f"the body is nested deeper than {_DEEPEST} levels")
    if isinstance(value, str):
        check_text(value)
    elif isinstance(value, dict):
        for key, inner in value.items():
            check_text(key)
            _check(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _check(inner, depth + 1)


def check_text(text: str) -> None:
    """Raises `UnreadableBody` for a string that cannot be stored."""
    if "\0" in text:
        raise UnreadableBody("a string holds the character U+0000; remove it")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UnreadableBody("a string holds half of a surrogate pair; send whole characters") from error
