"""Is the api alive, is it ready, what has it counted. Needs no key."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from redis.exceptions import RedisError
from sqlalchemy import text

from api.dependencies import ServicesDep
from pipelines.jobs.errors import ServiceUnavailable

router = APIRouter(tags=["health"])

_PATIENCE = 2.0
_PING = text("SELECT 1")


@router.get("/healthz", operation_id="healthz", summary="Is the process alive")
async def healthz() -> dict[str, str]:
    """Says nothing of the servers behind it."""
    return {"status": "ok"}


@router.get(
    "/readyz",
    operation_id="readyz",
    responses={503: {"description": "PostgreSQL does not answer", "content": {"application/json": {}}}},
    summary="Can it take requests",
)
async def readyz(services: ServicesDep) -> Response:
    """Ready while PostgreSQL answers. Redis is reported only: without it jobs are accepted all the same."""
    try:
        async with asyncio.timeout(_PATIENCE):
            await services.transact(lambda conn: conn.execute(_PING).scalar_one())
        database = "ok"
    except (ServiceUnavailable, TimeoutError):
        database = "unavailable"
    try:
        async with asyncio.timeout(_PATIENCE):
            await services.redis.ping()
        broker = "ok"
    except (RedisError, OSError, TimeoutError):
        broker = "unavailable"
    ready = database == "ok"
    return JSONResponse(
        {"status": "ready" if ready else "unavailable", "database": database, "redis": broker},
        status_code=200 if ready else 503,
    )


@router.get(
    "/metrics",
    operation_id="metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "Prometheus text format"}},
    summary="What was counted",
)
async def metrics(services: ServicesDep) -> Response:
    """For Prometheus."""
    return Response(services.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")
