"""`GET /v1/models`: the one model of this installation."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from api.dependencies import JobsRead, ServicesDep
from api.documentation import PROBLEMS, problems
from api.openai.answers import Model, ModelList
from pipelines.jobs.errors import NotFound
from pipelines.settings import Settings

router = APIRouter(prefix="/v1/models", tags=["openai"], responses=PROBLEMS)

_RELEASED = 1_713_398_400  # 18 April 2024: the same on every replica, after every restart


class ModelNotFound(NotFound):
    """No model of this name is served here."""

    code = "model_not_found"


@router.get("", operation_id="listModels", response_model=ModelList, summary="List models (OpenAI)")
async def list_models(services: ServicesDep, caller: JobsRead) -> JSONResponse:
    """There is one."""
    del caller
    return JSONResponse({"object": "list", "data": [_model(services.settings)]})


@router.get(
    "/{model}",
    operation_id="getModel",
    response_model=Model,
    responses=problems(404),
    summary="Read a model (OpenAI)",
)
async def get_model(model: str, services: ServicesDep, caller: JobsRead) -> JSONResponse:
    """By its name."""
    del caller
    require_model(services.settings, model)
    return JSONResponse(_model(services.settings))


def require_model(settings: Settings, name: str) -> None:
    """Raises `ModelNotFound` unless this model is the one that is served."""
    if name != settings.model_name:
        raise ModelNotFound(f"there is no model {name!r} here; use {settings.model_name}", param="model")


def _model(settings: Settings) -> dict[str, Any]:
    return {"id": settings.model_name, "object": "model", "created": _RELEASED, "owned_by": "batchsight"}
