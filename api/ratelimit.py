"""How many requests a tenant may make, counted in Redis by all replicas together, in memory while Redis is away.

A tenant that asks often is counted a few requests ahead: one question to Redis for all that come in the next moment.
How many grows with what it really used, so that at most a quarter of a second of its own pace is counted in vain.
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections import OrderedDict
from dataclasses import dataclass, field, replace

import structlog
from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from redis.asyncio import BlockingConnectionPool
from redis.exceptions import RedisError

from api.metrics import Metrics

_log = structlog.get_logger(__name__)
_PATIENCE = 0.5  # seconds that a request waits for Redis
_HOLD_OFF = 5.0  # seconds without asking a Redis that did not answer
_WINDOW = 60
_CONNECTIONS = 32


_AHEAD = 0.25  # seconds for which places are taken ahead
_MOST_AHEAD = 256
_MOST_TENANTS = 10_000


@dataclass(kw_only=True)
class _Places:
    """A tenant's requests that are counted already: `left` of `taken`, good until `until`. `waiting` want one."""

    decision: Decision | None = None
    taken: int = 0
    left: int = 0
    until: float = 0.0
    waiting: int = 0
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)

    def take(self) -> Decision | None:
        if self.decision is None or not self.left or self.until <= time.monotonic():
            return None
        self.left -= 1
        return replace(self.decision, remaining=self.decision.remaining + self.left)

    def put(self, decision: Decision, count: int) -> None:
        self.decision, self.taken, self.left = decision, count, count
        self.until = time.monotonic() + _AHEAD

    def wanted(self) -> int:
        """Twice what went in time; what was used, where some were left."""
        in_time = self.until > time.monotonic()
        used = self.taken - self.left
        return max(1, self.waiting, 2 * used if in_time else used)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Whether a request may pass. `reset` in seconds."""

    allowed: bool
    quota: int
    remaining: int
    reset: int

    def headers(self) -> dict[str, str]:
        """`RateLimit-Policy` and `RateLimit` as the IETF draft (version 11) has them."""
        return {
            "RateLimit-Policy": f'"default";q={self.quota};w={_WINDOW}',
            "RateLimit": f'"default";r={self.remaining};t={self.reset}',
        }


class RateLimiter:
    """A sliding window a minute wide, per tenant."""

    def __init__(self, redis_url: str, metrics: Metrics, *, per_minute: int) -> None:
        self._default = per_minute
        self._metrics = metrics
        self._pool = BlockingConnectionPool.from_url(
            redis_url,
            max_connections=_CONNECTIONS,
            timeout=_PATIENCE,
            socket_timeout=_PATIENCE,
            socket_connect_timeout=_PATIENCE,
        )
        storage = RedisStorage(
            f"async+{redis_url}",
            implementation="redispy",
            key_prefix="batchsight:limits",
            connection_pool=self._pool,  # type: ignore[arg-type]  # passed on to redis-py, as limits documents
        )
        self._shared = SlidingWindowCounterRateLimiter(storage)
        self._own = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._away_until = 0.0
        self._places: OrderedDict[tuple[uuid.UUID, int], _Places] = OrderedDict()

    async def close(self) -> None:
        """Close the connections to Redis."""
        await self._pool.aclose()

    async def hit(self, tenant_id: uuid.UUID, per_minute: int | None) -> Decision:
        """Count one request of the tenant."""
        quota = per_minute or self._default
        places = self._places.get((tenant_id, quota))
        if places is not None and (at_hand := places.take()) is not None:
            return at_hand
        if time.monotonic() >= self._away_until:
            try:
                async with asyncio.timeout(_PATIENCE):
                    return await self._ahead(tenant_id, quota)
            except (RedisError, OSError, TimeoutError) as error:
                self._away_until = time.monotonic() + _HOLD_OFF
                _log.warning("rate_limit_store_lost", error=repr(error))
        self._metrics.limiter_fallbacks.inc()
        return await self._ask(self._own, tenant_id, quota)

    async def _ahead(self, tenant_id: uuid.UUID, quota: int) -> Decision:
        """A place that was counted ahead; where none is left, count this request, and more if the last soon went."""
        places = self._places.get((tenant_id, quota))
        if places is None:
            places = self._places[tenant_id, quota] = _Places()
            while len(self._places) > _MOST_TENANTS:
                self._places.popitem(last=False)
        places.waiting += 1
        try:
            async with places.asking:  # one question at a time: who waited for it finds the answer
                if (at_hand := places.take()) is not None:
                    return at_hand
                count = min(places.wanted(), _MOST_AHEAD, max(1, quota // 10))
                decision = await self._ask(self._shared, tenant_id, quota, count=count)
                if not decision.allowed and count > 1:
                    count = 1
                    decision = await self._ask(self._shared, tenant_id, quota)
                if not decision.allowed:
                    return decision
                places.put(decision, count)
                return places.take() or decision
        finally:
            places.waiting -= 1

    async def _ask(
        self, limiter: SlidingWindowCounterRateLimiter, tenant_id: uuid.UUID, quota: int, *, count: int = 1
    ) -> Decision:
        item = RateLimitItemPerMinute(quota)
        allowed = await limiter.hit(item, str(tenant_id), cost=count)
        stats = await limiter.get_window_stats(item, str(tenant_id))
        reset = max(1, min(_WINDOW, math.ceil(stats.reset_time - time.time())))
        return Decision(allowed=allowed, quota=quota, remaining=max(0, int(stats.remaining)), reset=reset)
