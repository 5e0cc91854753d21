"""What every command shares: where the server is, and how to speak to it."""

from __future__ import annotations

from dataclasses import dataclass

import typer

from api.cli.config import Target, resolve
from api.client import AuthenticationFailed, Client


@dataclass(frozen=True, kw_only=True)
class Options:
    """The flags before the command."""

    url: str | None
    api_key: str | None


def client_of(context: typer.Context) -> Client:
    """A client for the server that is meant. Raises `AuthenticationFailed` where no key is known."""
    target = target_of(context)
    return Client(target.url, api_key=target.api_key)


def target_of(context: typer.Context) -> Target:
    """The server that is meant, and a key for it. Raises `AuthenticationFailed` where no key is known."""
    options = context.find_object(Options) or Options(url=None, api_key=None)
    target = resolve(url=options.url, api_key=options.api_key)
    if target.api_key is None:
        raise AuthenticationFailed(
            "no API key: set BATCHSIGHT_API_KEY, pass --api-key, or write it to your config file",
            status=401,
            code="unauthenticated",
        )
    return target
