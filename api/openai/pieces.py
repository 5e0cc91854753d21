"""Text on its way from whichever worker has the item: Redis pub/sub, with the database as the truth behind it.

Every piece carries the attempt that made it. A later attempt begins its text anew; what a client has been sent already
is held back then, so that nothing is said twice. Pieces may be lost with a connection: the rest comes from the result.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import structlog
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

_log = structlog.get_logger(__name__)
_PATIENCE = 2.0


def channel(job_id: uuid.UUID, seq: int) -> str:
    """Where the workers publish an item's text (`workers.stream`)."""
    return f"batchsight:stream:{job_id}:{seq}"


@dataclass(frozen=True, kw_only=True)
class Piece:
    """New text of an attempt, or (`ended`) word that the item's end can be read from the database."""

    attempt: int
    text: str = ""
    ended: bool = False


class Pieces:
    """A subscription; without Redis it is simply silent."""

    def __init__(self, pubsub: PubSub | None) -> None:
        self._pubsub = pubsub

    async def next(self, timeout: float) -> Piece | None:
        """The next piece, or None after `timeout` seconds (or once the connection is gone)."""
        if self._pubsub is None:
            await anyio.sleep(timeout)
            return None
        try:
            message = await self._pubsub.get_message(ignore_subscribe_messages=True, timeout=timeout)
        except (RedisError, OSError) as error:
            _log.warning("stream_lost", error=repr(error))
            self._pubsub = None
            return None
        return _piece(message) if message is not None else None


@asynccontextmanager
async def subscribed(redis: Redis, job_id: uuid.UUID, seq: int) -> AsyncIterator[Pieces]:
    """Subscribe before the job is submitted, so that no piece comes too early."""
    pubsub = redis.pubsub()
    try:
        try:
            with anyio.fail_after(_PATIENCE):
                await pubsub.subscribe(channel(job_id, seq))
        except (RedisError, OSError, TimeoutError) as error:
            _log.warning("stream_unavailable", error=repr(error))
            yield Pieces(None)
        else:
            yield Pieces(pubsub)
    finally:
        with anyio.CancelScope(shield=True):
            await pubsub.aclose()  # type: ignore[no-untyped-call]  # redis-py leaves it without annotations


class Spoken:
    """What a client has been sent, and what may still be sent."""

    def __init__(self) -> None:
        self.text = ""
        self._attempt = 0
        self._current = ""

    def hear(self, piece: Piece) -> str:
        """The part of this piece that is new to the client; text of an older attempt is nothing."""
        if piece.attempt < self._attempt:
            return ""
        if piece.attempt > self._attempt:
            self._attempt, self._current = piece.attempt, ""
        self._current += piece.text
        return self._beyond(self._current)

    def finish(self, whole: str) -> str | None:
        """What is missing of the stored answer; None where something else was said."""
        return self._beyond(whole) if whole.startswith(self.text) else None

    def _beyond(self, text: str) -> str:
        if not text.startswith(self.text):
            return ""
        fresh = text[len(self.text) :]
        self.text = text
        return fresh


def _piece(message: dict[str, Any]) -> Piece | None:
    try:
        value = json.loads(message["data"])
        return Piece(
            attempt=int(value["attempt"]), text=str(value.get("text", "")), ended=bool(value.get("ended", False))
        )
    except (ValueError, KeyError, TypeError):
        return None
