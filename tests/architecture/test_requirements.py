from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pins() -> dict[str, str]:
    lines = (ROOT / "deploy" / "requirements.lock").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.!+]+", row) for row in rows), "the lock holds exact pins and nothing else"
    return {str(canonicalize_name(name)): version for name, _, version in (row.partition("==") for row in rows)}


def test_every_requirement_is_pinned_to_a_version_that_it_allows() -> None:
    pinned = pins()
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["local"]]
    wanted += PROJECT["optional-dependencies"]["dev"]
    for text in wanted:
        requirement = Requirement(text)
        if requirement.name == "torch":
            continue  # its release and its build stand in the Makefile
        version = pinned.get(str(canonicalize_name(requirement.name)))
        assert version is not None, f"{requirement.name} is not pinned"
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement} is pinned to {version}"


def test_the_lock_pulls_no_gpu_packages_onto_a_cpu_machine() -> None:
    assert not [name for name in pins() if name.startswith(("nvidia-", "cuda-", "triton", "torch"))]


def test_the_makefile_pins_torch_to_a_release_that_the_project_allows() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    found = re.search(r"^TORCH \?= torch==(\S+)$", makefile, re.MULTILINE)
    assert found
    (allowed,) = (Requirement(text) for text in PROJECT["dependencies"] if Requirement(text).name == "torch")
    assert allowed.specifier.contains(found[1])
