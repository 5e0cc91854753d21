from __future__ import annotations

import subprocess
import sys

import pytest

FREE = (
    "types",
    "errors",
    "config",
    "names",
    "options",
    "params",
    "handle",
    "fake",
    "remote",
    "prompt",
    "tokenizer",
    "guard",
)


@pytest.mark.parametrize("heavy", ["torch", "transformers"])
def test_what_other_rooms_import_does_not_load_the_model_libraries(heavy: str) -> None:
    modules = ", ".join(f"pipelines.engine.{name}" for name in FREE)
    code = f"import {modules}, sys; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
