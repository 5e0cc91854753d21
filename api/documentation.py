"""What the OpenAPI document says beside what the code says: problem answers, and the union of all kinds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api.errors import PROBLEM_JSON
from api.schemas.base import Problem
from pipelines.kinds import registry
from pipelines.kinds.base import Example, MediaClass
from pipelines.kinds.registry import AnyKind
from pipelines.settings import Settings

Responses = dict[int | str, dict[str, Any]]

_MEANING: Mapping[int, str] = {
    400: "the body is not readable",
    401: "no API key, or one that is not valid",
    403: "the key lacks the scope",
    404: "nothing of this id is yours",
    405: "the address does not take this method",
    406: "none of the accepted media types can be sent",
    409: "the state does not allow this, or the same idempotency key is in flight",
    413: "the body or the number of media is too large",
    415: "another content type is needed",
    422: "a value must be changed; `error.param` names it",
    429: "too many requests, or a quota is used up",
    500: "a defect of the service; it has been logged",
    503: "a server behind the api did not answer; try again",
}
_EXAMPLE_URLS: Mapping[MediaClass, str] = {
    MediaClass.IMAGE: "s3://scans/2026/page-1.png",
    MediaClass.DOCUMENT: "s3://scans/2026/contract.pdf",
    MediaClass.VIDEO: "s3://media/clips/clip-1.mp4",
}


@dataclass(frozen=True, kw_only=True)
class _Made:
    """What an operation makes, and which operations go on with it."""

    status: str
    at: str
    parameter: str
    followed_by: tuple[str, ...]


_JOB = ("getJob", "getJobEvents", "listItems", "getResults", "cancelJob", "redriveJob")
_MADE: Mapping[str, _Made] = {
    "submitJob": _Made(status="202", at="/id", parameter="job_id", followed_by=_JOB),
    "redriveJob": _Made(status="202", at="/id", parameter="job_id", followed_by=_JOB),
    "uploadFile": _Made(
        status="200", at="/id", parameter="file_id", followed_by=("getFile", "getFileContent", "deleteFile")
    ),
    "presignUpload": _Made(
        status="201", at="/file/id", parameter="file_id", followed_by=("completeUpload", "getFile", "deleteFile")
    ),
    "createSchedule": _Made(
        status="201",
        at="/id",
        parameter="schedule_id",
        followed_by=(
            "getSchedule",
            "pauseSchedule",
            "resumeSchedule",
            "runSchedule",
            "listScheduleRuns",
            "deleteSchedule",
        ),
    ),
    "createBatch": _Made(status="200", at="/id", parameter="batch_id", followed_by=("getBatch", "cancelBatch")),
}
"""Links of the document: what tools, and the generated sequences of the tests, follow."""


def problems(*statuses: int) -> Responses:
    """Declared error answers."""
    return {
        status: {
            "description": _MEANING[status],
            "content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in statuses
    }


PROBLEMS = problems(400, 401, 403, 405, 422, 429, 500, 503)
"""What every route behind a key may answer."""


def install(app: FastAPI, settings: Settings) -> None:
    """Give the application its OpenAPI document: each kind a variant of the job request, this installation's limits."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, settings)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way


def _document(app: FastAPI, settings: Settings) -> dict[str, Any]:
    schema = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes, tags=app.openapi_tags
    )
    schemas = schema["components"]["schemas"]
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(problem.pop("$defs", {}))
    schemas["Problem"] = problem
    schemas["PresignRequest"]["properties"]["bytes"]["maximum"] = settings.max_upload_bytes
    _add_kinds(schema, schemas)
    _use_problems(schema)
    _add_links(schema)
    return schema


def _add_kinds(schema: dict[str, Any], schemas: dict[str, Any]) -> None:
    examples: dict[str, Any] = {}
    for kind in registry.all_kinds():
        parameters = kind.Parameters.model_json_schema(ref_template=f"#/components/schemas/{kind.name}.{{model}}")
        for name, definition in parameters.pop("$defs", {}).items():
            schemas[f"{kind.name}.{name}"] = definition
        schemas[f"{kind.name}.Parameters"] = parameters
        for number, example in enumerate(kind.examples):
            examples[f"{kind.name}_{number + 1}"] = {"summary": example.title, "value": example_request(kind, example)}
    for request in ("JobRequest", "JobTemplate"):
        _make_union(schemas, request)
    body = schema["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]
    body["examples"] = examples


def _make_union(schemas: dict[str, Any], request: str) -> None:
    """Turn a request with any kind into one variant a kind."""
    generic = schemas[request]
    variants = {}
    for kind in registry.all_kinds():
        needed = schemas[f"{kind.name}.Parameters"].get("required")
        properties = {
            **generic["properties"],
            "source": _sources_of(kind, generic["properties"]["source"], schemas),
            "kind": {"type": "string", "const": kind.name, "title": kind.title},
            "parameters": {"$ref": f"#/components/schemas/{kind.name}.Parameters"},
        }
        name = f"{request}.{kind.name}"
        required = ["kind", "source", *(["parameters"] if needed else [])]
        schemas[name] = {**generic, "properties": properties, "required": required, "title": name}
        variants[kind.name] = f"#/components/schemas/{name}"
    schemas[request] = {
        "oneOf": [{"$ref": reference} for reference in variants.values()],
        "discriminator": {"propertyName": "kind", "mapping": variants},
        "description": generic.get("description", ""),
    }


def _add_links(schema: dict[str, Any]) -> None:
    for path in schema["paths"].values():
        for operation in path.values():
            made = _MADE.get(operation["operationId"])
            if made is not None:
                parameters = {made.parameter: f"$response.body#{made.at}"}
                operation["responses"][made.status]["links"] = {
                    name: {"operationId": name, "parameters": parameters} for name in made.followed_by
                }


def _sources_of(kind: AnyKind, source: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    """The sources that this kind takes, with this kind's parameters for a medium of its own."""
    parameters = schemas[f"{kind.name}.Parameters"]
    schemas[f"{kind.name}.Overrides"] = {
        **{name: value for name, value in parameters.items() if name != "required"},
        "title": f"{kind.name}.Overrides",
        "description": f"Any of the parameters of `{kind.name}`, for one medium.",
    }
    entry = schemas["MediaEntry"]
    overrides = {"anyOf": [{"$ref": f"#/components/schemas/{kind.name}.Overrides"}, {"type": "null"}]}
    schemas[f"{kind.name}.MediaEntry"] = {
        **entry,
        "properties": {**entry["properties"], "parameters": overrides},
        "title": f"{kind.name}.MediaEntry",
    }
    listed = schemas["MediaSource"]
    media = {**listed["properties"]["media"], "items": {"$ref": f"#/components/schemas/{kind.name}.MediaEntry"}}
    schemas[f"{kind.name}.MediaSource"] = {
        **listed,
        "properties": {**listed["properties"], "media": media},
        "title": f"{kind.name}.MediaSource",
    }
    mapping = {
        name: f"#/components/schemas/{kind.name}.MediaSource" if name == "media" else reference
        for name, reference in source["discriminator"]["mapping"].items()
        if name != "none" or MediaClass.NONE in kind.media
    }
    return {
        **source,
        "oneOf": [{"$ref": reference} for reference in mapping.values()],
        "discriminator": {"propertyName": "type", "mapping": mapping},
    }


def example_request(kind: AnyKind, example: Example) -> dict[str, Any]:
    """A request that would run this example."""
    urls = [_EXAMPLE_URLS[view.media_class] for view in example.media if view.media_class is not MediaClass.NONE]
    source: dict[str, Any] = {"type": "media", "media": [{"url": url} for url in urls]} if urls else {"type": "none"}
    return {"kind": kind.name, "source": source, "parameters": dict(example.parameters)}


def _use_problems(schema: dict[str, Any]) -> None:
    """FastAPI declares its own 422 where it validates; ours has another body."""
    for path in schema["paths"].values():
        for operation in path.values():
            answer = operation.get("responses", {}).get("422")
            if answer is not None and "application/json" in answer.get("content", {}):
                operation["responses"]["422"] = problems(422)[422]
