"""Turns the shared operations into methods of the two clients, keeping their signatures and docstrings."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from .calls import Listing, Operation
from .retry import RetryPolicy

P = ParamSpec("P")
T = TypeVar("T")


class Blocking(Protocol):
    """A client that performs the steps in the calling thread."""

    retry: RetryPolicy

    def drive(self, operation: Operation[T]) -> T:
        """Run to its value."""

    def iterate(self, listing: Listing[T]) -> Iterator[T]:
        """Run as it is iterated."""


class Asynchronous(Protocol):
    """A client that performs the steps on an event loop."""

    retry: RetryPolicy

    async def drive(self, operation: Operation[T]) -> T:
        """Run to its value."""

    def iterate(self, listing: Listing[T]) -> AsyncIterator[T]:
        """Run as it is iterated."""


def blocking(operation: Callable[Concatenate[Any, P], Operation[T]]) -> Callable[Concatenate[Blocking, P], T]:
    """A method that answers with the operation's value."""

    @functools.wraps(operation)
    def method(self: Blocking, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.drive(operation(self, *args, **kwargs))

    return method


def iterating(listing: Callable[Concatenate[Any, P], Listing[T]]) -> Callable[Concatenate[Blocking, P], Iterator[T]]:
    """A method that iterates over what the listing emits."""

    @functools.wraps(listing)
    def method(self: Blocking, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        return self.iterate(listing(self, *args, **kwargs))

    return method


def awaiting(
    operation: Callable[Concatenate[Any, P], Operation[T]],
) -> Callable[Concatenate[Asynchronous, P], Awaitable[T]]:
    """The asynchronous form of `blocking`."""

    @functools.wraps(operation)
    def method(self: Asynchronous, /, *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
        return self.drive(operation(self, *args, **kwargs))

    return method


def async_iterating(
    listing: Callable[Concatenate[Any, P], Listing[T]],
) -> Callable[Concatenate[Asynchronous, P], AsyncIterator[T]]:
    """The asynchronous form of `iterating`."""

    @functools.wraps(listing)
    def method(self: Asynchronous, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
        return self.iterate(listing(self, *args, **kwargs))

    return method
