"""The steps of an operation, free of any input or output.

An operation is a generator: it yields what is to be done (`Call`, `Pause`, `Emit`) and is sent what came of it.
`Client` and `AsyncClient` only perform the steps, so retries, paging and waiting are written once.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A multipart file part and its form fields. A path is opened anew for each attempt.

    `on_progress`: called with the bytes that were read so far, and all there are.
    """

    filename: str
    content: bytes | Path
    fields: Mapping[str, str]
    on_progress: Callable[[int, int], None] | None = None


@dataclass(frozen=True, kw_only=True)
class Call:
    """One HTTP request. `repeatable`: sending it twice does no harm, so it may be tried again.

    `stream`: the reply of a success comes without its body, which is read by `More`.
    """

    method: str
    path: str
    query: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    upload: Upload | None = None
    timeout: float | None = None
    repeatable: bool = True
    stream: bool = False


@dataclass(frozen=True, kw_only=True)
class More:
    """Read on in the body of the call that streams: a `Piece`, or `Lost`."""


@dataclass(frozen=True, kw_only=True)
class Pause:
    """Do nothing for so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Emit(Generic[T_co]):
    """Hand a value to whoever iterates."""

    value: T_co


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the server answered; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, kw_only=True)
class Lost:
    """No answer: the connection failed or timed out."""

    reason: str
    cause: Exception


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Some bytes of a streamed body; none at its end."""

    data: bytes


Answer = Reply | Lost | Piece | None
Operation = Generator[Call | More | Pause, Answer, T]
"""Ends in a value."""
Listing = Generator[Call | More | Pause | Emit[T], Answer, None]
"""Emits values."""
