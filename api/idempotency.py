"""`Idempotency-Key`: the same request twice is done once, and answered alike.

The key, the work and the stored answer are one transaction. The key may be quoted (as the IETF draft has it) or bare.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from fastapi import Header, Request
from sqlalchemy import Connection

from api.services import Services
from pipelines.jobs.errors import InvalidParameter
from pipelines.store import idempotency
from pipelines.store.tenants import Principal

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description="1 to 255 visible ASCII characters, quoted or bare; a repetition is answered as the first was",
        json_schema_extra={"pattern": "^[!-~]{1,255}$"},
    ),
]

_KEY = re.compile(r"\A[\x21-\x7e]{1,255}\Z")


@dataclass(frozen=True, kw_only=True)
class Stored:
    """An answer that can be given again."""

    status: int
    body: Mapping[str, Any]
    replayed: bool = False


async def once(
    services: Services,
    caller: Principal,
    request: Request,
    payload: Any,
    work: Callable[[Connection], Stored],
) -> Stored:
    """Do `work` in a transaction, or give the answer that the request's key had before.

    Raises `IdempotencyInFlight`, `IdempotencyMismatch`, `InvalidParameter` and what `work` raises.
    """
    presented = request.headers.get("idempotency-key")
    if presented is None:
        return await services.transact(work)
    name = parse(presented)
    fingerprint = fingerprint_of(request.method, request.url.path, payload)
    keep = services.settings.idempotency_hours * 3600.0

    def guarded(conn: Connection) -> Stored:
        replay = idempotency.begin(conn, caller.tenant_id, name, fingerprint=fingerprint, keep=keep)
        if replay is not None:
            return Stored(status=replay.status, body=replay.response, replayed=True)
        made = work(conn)
        idempotency.finish(conn, caller.tenant_id, name, status=made.status, response=made.body)
        return replace(made, replayed=False)

    return await services.transact(guarded)


def parse(key: str) -> str:
    """The key without quotes. Raises `InvalidParameter`."""
    text = key.strip()
    if len(text) >= 2 and text[0] == text[-1] == '"':
        text = text[1:-1]
    if not _KEY.match(text):
        raise InvalidParameter(
            "Idempotency-Key must be 1 to 255 visible ASCII characters; a UUID does well", param="Idempotency-Key"
        )
    return text


def fingerprint_of(method: str, path: str, payload: Any) -> bytes:
    """SHA-256 of what is asked, independent of the order of fields."""
    canonical = json.dumps([method, path, payload], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).digest()
