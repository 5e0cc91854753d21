"""The application: routes, errors, middleware. Importing it connects to nothing and configures nothing."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI

from api import documentation, errors
from api.lifespan import lifespan
from api.metrics import Metrics
from api.middleware import BodyLimit, Observe, Scope
from api.openai import batches, chat, models
from api.polls import Polls
from api.routes import (
    admin,
    events,
    exports,
    files,
    health,
    items,
    jobs,
    kinds,
    results,
    schedules,
    usage,
    webhook_endpoints,
)
from pipelines.settings import Settings

_FORM_OVERHEAD = 1024 * 1024

_DESCRIPTION = """
Turns piles of documents, images and videos into text.

Submit a job (`POST /v1/jobs`), wait for it (`GET /v1/jobs/{id}?wait=30`), read its results. Errors are one body for
all: an RFC 9457 problem that also holds OpenAI's `error` object. Send `Idempotency-Key` with every POST that makes
something; a key is remembered for a day (the setting BATCHSIGHT_IDEMPOTENCY_HOURS), and a repetition is answered as
the first was.
"""

_TAGS = [
    {"name": "jobs", "description": "Submit, read, wait, cancel, redrive"},
    {"name": "items", "description": "One medium, or one page of one"},
    {"name": "results", "description": "JSON Lines or Markdown"},
    {"name": "exports", "description": "Results as objects: shards and a manifest"},
    {"name": "schedules", "description": "Jobs that repeat"},
    {"name": "files", "description": "Uploads, in OpenAI's form"},
    {"name": "webhooks", "description": "Who is told when a job ends"},
    {"name": "kinds", "description": "What can be asked"},
    {"name": "usage", "description": "What was spent"},
    {"name": "openai", "description": "What OpenAI's own clients call"},
    {"name": "admin", "description": "Tenants and keys, for operators"},
    {"name": "health", "description": "For machines that watch machines"},
]


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application for these settings (from the environment where none are given)."""
    chosen = settings or Settings()
    metrics = Metrics()
    app = FastAPI(
        title="Batchsight",
        version=_version(),
        description=_DESCRIPTION,
        openapi_tags=_TAGS,
        lifespan=lifespan(chosen, metrics),
    )
    native = (jobs, items, results, exports, events, schedules, files, webhook_endpoints, kinds, usage)
    for resource in (*native, chat, batches, models, admin, health):
        app.include_router(resource.router)
    errors.install(app)
    documentation.install(app, chosen)
    app.add_middleware(BodyLimit, limit=body_limit(chosen))
    app.add_middleware(Polls, services=lambda: getattr(app.state, "services", None))
    app.add_middleware(Observe, metrics=metrics)
    return app


def body_limit(settings: Settings) -> Callable[[Scope], int]:
    """How many bytes a request may have."""

    def limit(scope: Scope) -> int:
        if scope["method"] == "POST" and scope["path"] == "/v1/files":
            return settings.max_upload_bytes + _FORM_OVERHEAD
        return settings.max_body_bytes

    return limit


def _version() -> str:
    try:
        return version("batchsight")
    except PackageNotFoundError:
        return "0.0.0"
