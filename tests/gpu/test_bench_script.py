"""The measuring script runs with a toy shape on whatever is here: it does not rot between the days that lend a GPU."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

ABSENT = ("sentencepiece", "pydantic", "celery", "redis", "sqlalchemy", "structlog", "PIL", "hypothesis", "fastapi")
SCRIPT = Path(__file__).with_name("bench_h200.py")


@pytest.mark.parametrize("options", [[], ["--fp8-vision", "--quick"]])
def test_the_script_runs_with_a_toy_shape(tmp_path: Path, options: list[str]) -> None:
    out = tmp_path / "figures.json"
    # With torch, transformers, numpy and safetensors alone: the machine that is lent has nothing else of ours.
    code = (
        f"import runpy, sys; sys.modules |= dict.fromkeys({ABSENT}); sys.argv[0] = {str(SCRIPT)!r}; "
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    command = [sys.executable, "-c", code, "--tiny", "--json", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(out.read_text())
    page = figures["pages_4"]
    assert page["pages_per_second"] > 0
    assert math.isfinite(page["share_of_roofline"])
    assert ("mixed" in figures) == ("--quick" not in options)
    assert "videos_per_second" in done.stdout


def test_the_script_counts_the_arithmetic_of_the_model_description() -> None:
    import importlib.util

    spec = importlib.util.spec_from_file_location("bench_h200", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_h200"] = module
    spec.loader.exec_module(module)
    config = module.make_config(module.FULL)
    assert module.vision_flops(config) == pytest.approx(11.94e12, rel=0.02)
    assert module.prefill_flops(config, 3410) == pytest.approx(135e12, rel=0.03)
