"""The OpenAPI document: a committed snapshot, so that no change of the contract goes unseen.

Update it with: `python -m tests.api.test_openapi`
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from api.app import create_app
from api.schemas.jobs import JobRequest
from pipelines.kinds import registry
from pipelines.kinds.base import MediaClass
from pipelines.settings import Settings

SNAPSHOT = Path(__file__).parents[1] / "data" / "openapi.json"
NO_KEY = {"/healthz", "/readyz", "/metrics"}


def document() -> dict[str, Any]:
    app = create_app(Settings(api_key_pepper=SecretStr("p" * 40), _env_file=None))
    found: dict[str, Any] = json.loads(json.dumps(app.openapi()))
    found["info"]["version"] = "snapshot"
    return found


def operations() -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (path, method, operation)
        for path, methods in document()["paths"].items()
        for method, operation in methods.items()
    ]


def test_the_contract_is_the_committed_one() -> None:
    assert document() == json.loads(SNAPSHOT.read_text(encoding="utf-8")), (
        "the api's contract has changed; if that is meant, run: python -m tests.api.test_openapi"
    )


def test_operations_have_stable_ids_summaries_and_declared_problems() -> None:
    ids = [operation["operationId"] for _, _, operation in operations()]
    assert len(ids) == len(set(ids))
    for path, _, operation in operations():
        assert operation["summary"]
        if path in NO_KEY:
            continue
        assert operation["security"] == [{"ApiKey": []}]
        for status in ("401", "403", "429", "500", "503"):
            content = operation["responses"][status]["content"]
            assert content == {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}


def test_every_kind_is_a_variant_with_examples_that_are_valid() -> None:
    found = document()
    names = {kind.name for kind in registry.all_kinds()}
    assert set(found["components"]["schemas"]["JobRequest"]["discriminator"]["mapping"]) == names
    body = found["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]
    assert {example["value"]["kind"] for example in body["examples"].values()} == names
    for example in body["examples"].values():
        request = JobRequest.model_validate(example["value"])
        registry.get(request.kind).validate(request.parameters)


def test_links_lead_from_what_is_made_to_what_goes_on_with_it() -> None:
    known = {operation["operationId"]: (path, operation) for path, _, operation in operations()}
    links = [
        (name, link)
        for _, operation in known.values()
        for answer in operation["responses"].values()
        for name, link in answer.get("links", {}).items()
    ]
    assert len(links) >= 15
    for name, link in links:
        path, operation = known[link["operationId"]]
        assert name == link["operationId"]
        assert set(link["parameters"]) <= {parameter["name"] for parameter in operation["parameters"]}, path


def test_a_kind_without_need_of_media_alone_may_have_none() -> None:
    schemas = document()["components"]["schemas"]
    for kind in registry.all_kinds():
        sources = schemas[f"JobRequest.{kind.name}"]["properties"]["source"]["discriminator"]["mapping"]
        assert ("none" in sources) == (MediaClass.NONE in kind.media)
        assert "required" not in schemas[f"{kind.name}.Overrides"]


def test_references_lead_somewhere() -> None:
    found = document()
    schemas = found["components"]["schemas"]

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            reference = value.get("$ref")
            if isinstance(reference, str):
                assert reference.removeprefix("#/components/schemas/") in schemas, reference
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    walk(found)


if __name__ == "__main__":
    SNAPSHOT.parent.mkdir(parents=True, exist_ok=True)
    SNAPSHOT.write_text(json.dumps(document(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
