"""Generated requests, good and bad, single and in sequences, against the served api: it keeps to its own contract."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from tests.api.conftest import Served, serving

# All checks are on. What JSON Schema cannot say, and a schema-valid request may therefore be refused for: how the turns
# of a chat alternate, what an object's address looks like, how large a file may be on this installation, an
# idempotency key that was used with another payload. Long polls take up to a minute on purpose.
CONFIGURATION = """
max-stream-events = 1

[checks]
max_response_time = 90

[[operations]]
include-operation-id = ["submitJob", "redriveJob", "presignUpload", "createChatCompletion"]
checks.positive_data_acceptance.enabled = false
"""

EXAMPLES = os.environ.get("SCHEMATHESIS_EXAMPLES", "3")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_generated_requests_find_no_broken_promise(api: Served, http: httpx2.Client, tmp_path: Path) -> None:
    open_gates = api.settings.model_copy(update={"rate_limit_per_minute": 10_000_000})
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
                "--no-color",
                "-H",
                f"Authorization: Bearer {api.caller.key}",
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=800,
            check=False,
        )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
