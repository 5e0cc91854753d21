"""How many requests a tenant may make, counted in Redis by all replicas together, in memory while Redis is away."""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from dataclasses import dataclass

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

    async def close(self) -> None:
        """Close the connections to Redis."""
        await self._pool.aclose()

    async def hit(self, tenant_id: uuid.UUID, per_minute: int | None) -> Decision:
        """Count one request of the tenant."""
        quota = per_minute or self._default
        if time.monotonic() >= self._away_until:
            try:
                async with asyncio.timeout(_PATIENCE):
                    return await self._ask(self._shared, tenant_id, quota)
            except (RedisError, OSError, TimeoutError) as error:
                self._away_until = time.monotonic() + _HOLD_OFF
                _log.warning("rate_limit_store_lost", error=repr(error))
        self._metrics.limiter_fallbacks.inc()
        return await self._ask(self._own, tenant_id, quota)

    async def _ask(self, limiter: SlidingWindowCounterRateLimiter, tenant_id: uuid.UUID, quota: int) -> Decision:
        item = RateLimitItemPerMinute(quota)
        allowed = await limiter.hit(item, str(tenant_id))
        stats = await limiter.get_window_stats(item, str(tenant_id))
        reset = max(1, min(_WINDOW, math.ceil(stats.reset_time - time.time())))
        return Decision(allowed=allowed, quota=quota, remaining=max(0, int(stats.remaining)), reset=reset)
