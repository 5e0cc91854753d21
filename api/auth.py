"""Who is asking. A valid key is remembered for a few seconds: a poll costs no query, and a revocation bites soon."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from sqlalchemy import Connection

from pipelines.jobs.errors import ConfigurationError, Unauthenticated
from pipelines.store import tenants
from pipelines.store.tenants import Principal

SCOPES = ("jobs:read", "jobs:write", "files:read", "files:write", "webhooks:read", "webhooks:write", "admin")
"""What a key may be allowed; `admin` covers `/v1/admin`, not the others."""

_LONGEST_KEY = 256
_MOST_REMEMBERED = 10_000
_SHORTEST_PEPPER = 32

Transact = Callable[[Callable[[Connection], Principal]], Awaitable[Principal]]


class Authenticator:
    """Checks keys against the store, remembering good ones by their digest for `remember` seconds."""

    def __init__(self, transact: Transact, *, pepper: str, remember: float = 5.0) -> None:
        self._pepper = check_pepper(pepper)
        self._transact = transact
        self._remember = remember
        self._known: OrderedDict[bytes, tuple[float, Principal]] = OrderedDict()

    def remembered(self, authorization: str | None) -> Principal | None:
        """The caller behind an `Authorization` header, where the key was checked a moment ago."""
        presented = _presented(authorization)
        found = None if presented is None else self._known.get(_digest(presented))
        return found[1] if found is not None and found[0] > time.monotonic() else None

    async def authenticate(self, authorization: str | None) -> Principal:
        """The caller behind an `Authorization` header. Raises `Unauthenticated`."""
        presented = _presented(authorization)
        if presented is None:
            raise Unauthenticated("send your API key in the header Authorization: Bearer bs_…")
        digest = _digest(presented)
        found = self._known.get(digest)
        if found is not None and found[0] > time.monotonic():
            return found[1]
        self._known.pop(digest, None)
        principal = await self._transact(lambda conn: tenants.authenticate(conn, presented, pepper=self._pepper))
        self._known[digest] = (time.monotonic() + self._remember, principal)
        while len(self._known) > _MOST_REMEMBERED:
            self._known.popitem(last=False)
        return principal


def _presented(authorization: str | None) -> str | None:
    scheme, _, presented = (authorization or "").partition(" ")
    presented = presented.strip()
    return presented if scheme.lower() == "bearer" and 0 < len(presented) <= _LONGEST_KEY else None


def _digest(presented: str) -> bytes:
    return hashlib.sha256(presented.encode("utf-8", "surrogatepass")).digest()


def check_pepper(pepper: str) -> str:
    """The pepper, where it is long enough. Raises `ConfigurationError`."""
    if len(pepper) < _SHORTEST_PEPPER:
        raise ConfigurationError(
            f"BATCHSIGHT_API_KEY_PEPPER must have at least {_SHORTEST_PEPPER} characters; "
            "make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    return pepper
