from __future__ import annotations

import copy
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from deploy.local.settings_table import variable
from pipelines.settings import Settings
from tests.architecture.deployment_schemas import COMPOSE, KUBERNETES

DEPLOY = Path(__file__).parents[2] / "deploy"
SETTINGS = {variable(name, field) for name, field in Settings.model_fields.items()}
ROLES = ("api", "cpu", "gpu")


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text(encoding="utf-8"))
    return loaded


def manifests() -> list[dict[str, Any]]:
    return [
        document
        for path in sorted((DEPLOY / "kubernetes").glob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
    ]


def containers() -> list[dict[str, Any]]:
    return [
        container
        for document in manifests()
        if document["kind"] in {"Deployment", "Job"}
        for container in document["spec"]["template"]["spec"]["containers"]
    ]


def test_the_compose_file_keeps_its_schema() -> None:
    jsonschema.validate(compose(), COMPOSE)


@pytest.mark.parametrize("name", ["redis", "api"])
def test_a_misspelled_field_of_the_compose_file_is_found(name: str) -> None:
    broken = copy.deepcopy(compose())
    broken["services"][name]["comand"] = ["true"]
    with pytest.raises(jsonschema.ValidationError, match="comand"):
        jsonschema.validate(broken, COMPOSE)


def test_compose_starts_everything_the_design_names() -> None:
    services = compose()["services"]
    assert {"postgres", "redis", "minio", "api", "cpu", "gpu", "dispatcher"} <= set(services)
    assert services["dispatcher"]["deploy"]["replicas"] == 2
    redis = " ".join(services["redis"]["command"])
    assert "--appendonly yes" in redis
    assert "--maxmemory-policy noeviction" in redis


def test_every_process_of_compose_is_locked_down_and_has_a_health_check() -> None:
    for name, service in compose()["services"].items():
        assert "healthcheck" in service or service["restart"] == "on-failure", name
        if service["image"].startswith("batchsight"):
            assert {"init", "read_only", "cap_drop", "security_opt"} <= set(service), name
            assert (DEPLOY.parent / service["build"]["dockerfile"]).is_file()


def test_what_compose_waits_for_exists_and_can_be_waited_for() -> None:
    services = compose()["services"]
    for name, service in services.items():
        for other, wanted in service.get("depends_on", {}).items():
            if wanted["condition"] == "service_healthy":
                assert "test" in services[other]["healthcheck"], (name, other)
            else:
                assert services[other]["restart"] == "on-failure", (name, other)


def test_every_secret_of_compose_must_be_given_and_is_in_the_example() -> None:
    text = (DEPLOY / "compose" / "compose.yaml").read_text(encoding="utf-8")
    used = dict(re.findall(r"\$\{(\w+)(:\?|:-)?", text))
    example = (DEPLOY / "compose" / ".env.example").read_text(encoding="utf-8")
    assert set(used) == set(re.findall(r"^(\w+)=", example, re.MULTILINE))
    assert {name for name, form in used.items() if form != ":?"} == {"ALLOWED_BUCKETS", "EXPORT_BUCKETS"}
    assert not re.findall(r"^\w*(?:PASSWORD|PEPPER|KEY\w*)=.+$", example, re.MULTILINE)


def test_every_variable_that_is_set_is_a_setting() -> None:
    named: set[str] = set()
    for service in compose()["services"].values():
        if service["image"].startswith("batchsight"):
            named |= set(service["environment"])
    for container in containers():
        named |= {entry["name"] for entry in container.get("env", [])}
    for document in manifests():
        named |= set(document.get("data", {})) | set(document.get("stringData", {}))
    assert named - SETTINGS == set()


@pytest.mark.parametrize(
    "document", manifests(), ids=lambda document: f"{document['kind']}-{document['metadata']['name']}"
)
def test_every_manifest_keeps_its_schema(document: dict[str, Any]) -> None:
    jsonschema.validate(document, KUBERNETES[document["kind"]])


def test_a_container_as_root_or_without_a_probe_is_found() -> None:
    (deployment,) = (d for d in manifests() if d["kind"] == "Deployment" and d["metadata"]["name"] == "cpu")
    for change in ("securityContext", "livenessProbe"):
        broken = copy.deepcopy(deployment)
        del broken["spec"]["template"]["spec"]["containers"][0][change]
        with pytest.raises(jsonschema.ValidationError, match=change):
            jsonschema.validate(broken, KUBERNETES["Deployment"])


def test_manifests_fit_together() -> None:
    deployments = {d["metadata"]["name"]: d for d in manifests() if d["kind"] == "Deployment"}
    assert set(deployments) == {"api", "cpu", "gpu", "dispatcher"}
    assert deployments["dispatcher"]["spec"]["replicas"] == 2
    for document in manifests():
        spec = document.get("spec", {})
        if document["kind"] in {"Deployment", "PodDisruptionBudget"}:
            component = spec["selector"]["matchLabels"]["app.kubernetes.io/component"]
            assert component in deployments
            labels = deployments[component]["spec"]["template"]["metadata"]["labels"]
            assert labels == spec["selector"]["matchLabels"]
        if document["kind"] in {"Deployment", "Job"}:
            pod = spec["template"]["spec"]
            there = {volume["name"] for volume in pod["volumes"]}
            assert {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]} == there


def test_a_pod_gets_longer_to_leave_than_its_worker_drains() -> None:
    drain = Settings.model_fields["drain_seconds"].default
    for document in manifests():
        if document["kind"] == "Deployment" and document["metadata"]["name"] in {"cpu", "gpu"}:
            assert document["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > drain
    for name in ("cpu", "gpu"):
        assert int(compose()["services"][name]["stop_grace_period"].removesuffix("s")) > drain


@pytest.mark.parametrize("role", ROLES)
def test_images_are_pinned_checked_and_not_root(role: str) -> None:
    text = (DEPLOY / "docker" / f"Dockerfile.{role}").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    words = [line[0] for line in lines]
    known = {"FROM", "ENV", "RUN", "WORKDIR", "COPY", "ARG", "USER", "EXPOSE", "VOLUME", "HEALTHCHECK", "CMD"}
    assert set(words) <= known
    for word, rest in lines:
        if word == "FROM":
            assert re.match(r"python:3\.\d+\.\d+-slim-\w+( AS \w+)?$", rest)
    assert words.count("FROM") == 2
    users = [rest for word, rest in lines if word == "USER"]
    assert users == ["10001:10001"]
    assert words.index("USER") < words.index("CMD")
    for word in ("HEALTHCHECK", "CMD", "EXPOSE"):
        assert words.count(word) == 1


@pytest.mark.parametrize("role", ROLES)
def test_what_an_image_copies_is_let_into_its_build(role: str) -> None:
    root = DEPLOY.parent
    allowed = {
        line.removeprefix("!")
        for line in (root / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    }
    assert all((root / name).exists() for name in allowed)
    for line in (DEPLOY / "docker" / f"Dockerfile.{role}").read_text(encoding="utf-8").splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            for name in line.split()[1:-1]:
                assert name == "." or name.partition("/")[0] in allowed, name
                assert (root / name).exists()


def test_only_the_engine_s_image_installs_torch() -> None:
    script = DEPLOY / "docker" / "requirements.py"
    for role in ROLES:
        text = (DEPLOY / "docker" / f"Dockerfile.{role}").read_text(encoding="utf-8")
        call = re.search(r"requirements\.py ((?:--without \w+ ?)+)", text)
        assert call
        done = subprocess.run(
            [sys.executable, str(script), "--pyproject", str(DEPLOY.parent / "pyproject.toml"), *call[1].split()],
            capture_output=True,
            text=True,
            check=True,
        )
        names = {re.split(r"[^\w.-]", line)[0] for line in done.stdout.splitlines()}
        assert "torch" not in names, "torch is installed by itself, in its own build"
        assert ("transformers" in names) == (role == "gpu")
        assert {"celery", "sqlalchemy", "fastapi"} <= names


def test_health_endpoints_in_containers_listen_where_probes_come_from() -> None:
    texts = [path.read_text(encoding="utf-8") for path in sorted(DEPLOY.glob("docker/Dockerfile.*"))]
    texts += [path.read_text(encoding="utf-8") for path in sorted(DEPLOY.glob("kubernetes/*.yaml"))]
    texts.append((DEPLOY / "compose" / "compose.yaml").read_text(encoding="utf-8"))
    ports = [len(re.findall(r"BATCHSIGHT_HEALTH_PORT[=:]", text)) for text in texts]
    assert sum(ports) >= 6
    assert ports == [len(re.findall(r"BATCHSIGHT_HEALTH_HOST(?:=|: )0\.0\.0\.0", text)) for text in texts]
