"""The api's wiring: from settings to `Services`, and back."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import uuid
from collections.abc import AsyncIterator, Callable

import anyio
from fastapi import FastAPI
from redis.asyncio import Redis

from api.auth import Authenticator
from api.metrics import Metrics
from api.openai.batch_writer import write_forever
from api.ratelimit import RateLimiter
from api.services import Services, transact
from api.snapshots import Snapshots
from api.watch import JobWatch
from pipelines.blobs.connect import blob_store, s3_options
from pipelines.blobs.s3 import S3ObjectReader
from pipelines.control import query
from pipelines.control.query import JobView
from pipelines.settings import Settings
from pipelines.store.session import Database
from workers.publish import Publisher

_POOL = 8
_HINTS = 4


def lifespan(settings: Settings, metrics: Metrics) -> Callable[[FastAPI], contextlib.AbstractAsyncContextManager[None]]:
    """What FastAPI runs around the application's life."""

    @contextlib.asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        async with services(settings, metrics) as made:
            app.state.services = made
            yield

    return running


@contextlib.asynccontextmanager
async def services(settings: Settings, metrics: Metrics) -> AsyncIterator[Services]:
    """Everything the routes need. Nothing connects before it is used, so the api starts while its servers are away."""
    database = Database(settings.database_url, pool_size=_POOL, application_name="batchsight-api")
    threads = anyio.CapacityLimiter(_POOL)
    run = functools.partial(transact, database, threads)

    async def load(tenant_id: uuid.UUID, job_id: uuid.UUID) -> JobView | None:
        return await run(lambda conn: query.read_job(conn, tenant_id, job_id))

    limiter = RateLimiter(settings.redis_url, metrics, per_minute=settings.rate_limit_per_minute)
    snapshots = Snapshots(gpu_second_cost=settings.gpu_second_cost)
    watch = JobWatch(database.url, load, changed=snapshots.forget)
    publisher = Publisher(settings.redis_url)
    redis = Redis.from_url(settings.redis_url, socket_connect_timeout=2, health_check_interval=15)
    try:
        async with watch.running():
            made = Services(
                settings=settings,
                database=database,
                blobs=blob_store(settings),
                objects=S3ObjectReader(s3_options(settings)),
                publisher=publisher,
                redis=redis,
                auth=Authenticator(run, pepper=settings.api_key_pepper.get_secret_value()),
                limiter=limiter,
                watch=watch,
                snapshots=snapshots,
                loop=asyncio.get_running_loop(),
                metrics=metrics,
                threads=threads,
                hint_threads=anyio.CapacityLimiter(_HINTS),
            )
            made.background(write_forever(made))
            try:
                yield made
            finally:
                made.stopping.set()
                await asyncio.gather(*made.tasks, return_exceptions=True)
    finally:
        await limiter.close()
        await redis.aclose()
        publisher.close()
        database.close()
