"""The client is installed as `batchsight`, and the list of packages in pyproject is whole."""

from __future__ import annotations

import tomllib
from pathlib import Path

import batchsight
from setuptools import find_packages

ROOT = Path(__file__).parents[3]


def test_the_client_is_importable_under_its_own_name() -> None:
    assert Path(batchsight.__file__).resolve() == ROOT / "api" / "client" / "__init__.py"
    assert (ROOT / "api" / "client" / "py.typed").is_file()
    assert set(batchsight.__all__) >= {"Client", "AsyncClient", "Job", "Result", "ApiError", "WaitTimeout"}


def test_every_package_is_listed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = find_packages(str(ROOT), include=["api*", "workers*", "pipelines*", "migrations*", "deploy*"])
    assert sorted(settings["packages"]) == sorted(["batchsight", *found])
    assert settings["package-dir"] == {"batchsight": "api/client"}
