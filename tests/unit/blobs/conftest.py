"""A real S3 server for the tests of this folder."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.blobs.s3 import S3Options

KEYS = ("test-access-key", "test-secret-key")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Options]:
    folder = tmp_path_factory.mktemp("s3")
    port = free_port()
    program = Path(sys.executable).parent / "rclone"
    command = [str(program), "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", ",".join(KEYS)]
    environment = {"HOME": str(folder), "PATH": "/usr/bin:/bin"}
    data = folder / "data"
    data.mkdir()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, str(data)], stdout=log, stderr=log, env=environment)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, "the S3 server does not start"
                time.sleep(0.05)
        yield S3Options(
            endpoint_url=f"http://127.0.0.1:{port}", access_key_id=KEYS[0], secret_access_key=KEYS[1], attempts=1
        )
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def dead_s3(s3: S3Options) -> S3Options:
    return replace(s3, endpoint_url=f"http://127.0.0.1:{free_port()}")
