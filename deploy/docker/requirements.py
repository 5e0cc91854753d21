"""Prints the packages an image needs: `requirements.py [--without NAME]… [--extra NAME]…`, from `pyproject.toml`.

The api, the dispatcher and the cpu worker never import the engine, so their images leave torch and transformers out:
a few hundred megabytes instead of several gigabytes. Versions come from `requirements.lock`, pip's constraints.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from pathlib import Path


def requirements(pyproject: Path, *, without: list[str], extras: list[str]) -> list[str]:
    """The project's dependencies and those of `extras`, less the packages named in `without`."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    wanted: list[str] = list(project["dependencies"])
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    return [text for text in wanted if re.split(r"[^\w.-]", text, maxsplit=1)[0] not in without]


def main() -> int:
    """Parse the command line and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pyproject", type=Path, default=Path("pyproject.toml"))
    parser.add_argument("--without", action="append", default=[])
    parser.add_argument("--extra", action="append", default=[])
    options = parser.parse_args()
    print("\n".join(requirements(options.pyproject, without=options.without, extras=options.extra)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
