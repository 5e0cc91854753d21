from __future__ import annotations

import json
import subprocess
import sys

import pytest

IMPORT_ALL = """
import importlib, json, pkgutil, sys
SKIPPED = ("api.cli", "pipelines.engine.", "migrations.env", "migrations.versions")
for name in sys.argv[1:]:
    module = importlib.import_module(name)
    for found in pkgutil.walk_packages(getattr(module, "__path__", []), f"{name}."):
        if "__main__" not in found.name and not found.name.startswith(SKIPPED):
            importlib.import_module(found.name)
loaded = {name.partition(".")[0] for name in sys.modules}
print(json.dumps(sorted(loaded & {"torch", "transformers", "decord", "av"})))
"""
BUILD = """
import json, sys
from pipelines.settings import Settings
from api.app import create_app
create_app(Settings(api_key_pepper="x" * 32)).openapi()
loaded = {name.partition(".")[0] for name in sys.modules}
print(json.dumps(sorted(loaded & {"torch", "transformers", "celery.app.trace"})))
"""


def loaded(code: str, *arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    names: list[str] = json.loads(done.stdout)
    return names


@pytest.mark.parametrize(
    "modules",
    [
        ["api"],
        ["pipelines"],
        ["workers"],
        ["migrations"],
    ],
    ids=lambda modules: modules[0],
)
def test_importing_everything_outside_of_the_engine_loads_no_torch(modules: list[str]) -> None:
    assert not set(loaded(IMPORT_ALL, *modules)) & {"torch", "transformers"}


def test_the_api_server_is_built_without_torch() -> None:
    assert loaded(BUILD) == []


@pytest.mark.parametrize("module", ["types", "config", "errors"])
def test_the_engine_s_port_is_free_of_torch(module: str) -> None:
    assert not set(loaded(IMPORT_ALL, f"pipelines.engine.{module}")) & {"torch", "transformers"}
