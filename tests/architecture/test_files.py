from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("api", "workers", "pipelines", "migrations", "deploy", "tests")
LONGEST = 350
ALONE = {"tests/gpu/bench_h200.py"}
"""One script on purpose: on a GPU machine that is lent for minutes, one call must measure everything."""
TEXT = {".py", ".md", ".toml", ".yaml", ".yml", ".html", ".css", ".js", ""}


def files(*rooms: str) -> list[Path]:
    found = [path for room in rooms for path in sorted((ROOT / room).rglob("*.py")) if "vendor" not in path.parts]
    assert found
    return found


def test_no_file_is_longer_than_one_subject_needs() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files(*ROOMS)}
    too_long = {str(path.relative_to(ROOT)): length for path, length in lengths.items() if length > LONGEST}
    assert set(too_long) <= ALONE, too_long


def test_every_folder_with_modules_is_a_package() -> None:
    here = files("api", "workers", "pipelines", "migrations", "deploy")
    packages = {path.parent for path in here if path.name == "__init__.py"}
    scripts = {ROOT / "deploy" / "docker"}  # run by the images' builds
    assert {path.parent for path in here} - scripts == packages


def test_domain_errors_know_no_http_status() -> None:
    for path in files("pipelines"):
        if path.name != "errors.py":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        numbers = {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, int)
        }
        assert not {number for number in numbers if 100 <= number < 600}, path


def test_nobody_asks_which_kind_it_is_outside_of_the_kinds() -> None:
    kinds = {path.stem for path in (ROOT / "pipelines" / "kinds").glob("*.py")} - {"__init__", "base", "registry"}
    assert len(kinds) >= 4
    for path in files("pipelines", "workers", "api"):
        if "kinds" in path.parts or "client" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                named = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
                assert not named & kinds, f"{path}:{node.lineno} compares with a kind's name"


@pytest.mark.parametrize("name", ["celery", "redis", "kombu"])
def test_no_test_replaces_a_server_by_a_mock(name: str) -> None:
    for path in files("tests"):
        imported = {
            alias.name
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in ast.walk(node)
            if isinstance(alias, ast.alias)
        } | {
            node.module or ""
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom)
        }
        assert not imported & {"unittest.mock", "moto", f"fake{name}", f"mock{name}"}, path
