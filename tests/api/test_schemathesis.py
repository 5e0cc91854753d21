"""Generated requests, good and bad, single and in sequences, against the served api: it keeps to its own contract."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from tests.api.conftest import Served, serving

# All checks are on. What JSON Schema cannot say is said to the generator by `schemathesis_hooks`. Some bodies stay out
# of one check. A job's: the coverage phase makes thousands, and not all of them have been seen to be accepted. A
# chat's: which parts, roles and options go together depends on what its addresses hold (a video, or frames that were
# sampled before), and on turns that are merged first. A schedule's: a job's again (whose thousands of cases are not
# made once more either), a cron that names a day that comes, a name that is not taken. What is too large is refused by
# 413. Long polls take up to a minute on purpose.
CONFIGURATION = """
hooks = "tests.api.schemathesis_hooks"
max-stream-events = 1

[checks]
max_response_time = 90
negative_data_rejection.expected-statuses = ["400", "401", "403", "404", "406", "413", "415", "422", "5xx"]

[[operations]]
include-operation-id = ["submitJob", "createChatCompletion", "previewSchedule"]
checks.positive_data_acceptance.enabled = false

[[operations]]
include-operation-id = ["createSchedule", "changeSchedule"]
checks.positive_data_acceptance.enabled = false
phases.coverage.enabled = false
"""

ROOT = Path(__file__).parents[2]
EXAMPLES = os.environ.get("SCHEMATHESIS_EXAMPLES", "3")


ONLY = os.environ.get("SCHEMATHESIS_ONLY", "").split()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_generated_requests_find_no_broken_promise(api: Served, http: httpx2.Client, tmp_path: Path) -> None:
    open_gates = api.settings.model_copy(
        update={"rate_limit_per_minute": 10_000_000, "webhook_endpoints_per_tenant": 1_000_000}
    )
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)
    http.post("/v1/files", files={"file": ("a.png", b"png")})
    with serving(open_gates) as (url, _):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "schemathesis.cli",
                "--config-file=schemathesis.toml",
                "run",
                f"{url}/openapi.json",
                "--generation-allow-x00=false",  # PostgreSQL has no U+0000; such strings are refused (test_errors)
                "--phases=examples,coverage,fuzzing,stateful",
                f"--max-examples={EXAMPLES}",
                "--seed=17",
                "--request-timeout=60",
                "--suppress-health-check=all",
                *(f"--include-operation-id={name}" for name in ONLY),
                "--no-color",
                "-H",
                f"Authorization: Bearer {api.caller.key}",
            ],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=800,
            check=False,
        )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
