"""`kill -9` of any process while a mixed load runs: the same results as without.

The whole stack, the real engine on a small random checkpoint in float64 (no near-tie can excuse a difference), the
demo's own samples. Leases are short so that the test is.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.client import Client, Job
from deploy.demo.random_checkpoint import write_random_checkpoint
from deploy.demo.samples import Sample, write_samples
from deploy.local.stack import SAMPLES_BUCKET, Stack, StackOptions

SHORT = {
    "BATCHSIGHT_LEASE_SECONDS": "4",
    "BATCHSIGHT_HEARTBEAT_SECONDS": "1",
    "BATCHSIGHT_SWEEP_SECONDS": "1",
    "BATCHSIGHT_LEADER_LEASE_SECONDS": "2",
    "BATCHSIGHT_REDISPATCH_SECONDS": "5",
    "BATCHSIGHT_ENGINE_DTYPE": "float64",
    "BATCHSIGHT_ENGINE_THREADS": "1",
}
GENERATION = {"max_new_tokens": 24}

Texts = dict[tuple[str, int | None], str]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    write_random_checkpoint(folder / "checkpoint", seed=1)
    environment = {**SHORT, "MODEL": str(folder / "checkpoint")}
    with Stack(folder, StackOptions(durable=False, environment=environment), say=lambda _: None) as started:
        yield started


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[Client]:
    assert stack.addresses is not None
    with Client(stack.addresses.api_url, api_key=stack.addresses.api_key) as opened:
        yield opened


@pytest.fixture(scope="module")
def undisturbed(stack: Stack, client: Client, tmp_path_factory: pytest.TempPathFactory) -> Texts:
    samples = write_samples(tmp_path_factory.mktemp("samples"), 7)
    s3 = stack.s3()
    for sample in samples:
        s3.upload_file(str(sample.path), SAMPLES_BUCKET, _key(sample))
    job = client.wait(_submit(client).id, timeout=180)
    assert job.state == "partial", job
    return _texts(client, job)


def _key(sample: Sample) -> str:
    return f"{sample.kind}/{sample.path.name}"


def _submit(client: Client) -> Job:
    source = {"type": "prefix", "url": f"s3://{SAMPLES_BUCKET}/ocr/"}
    return client.submit("ocr", source=source, parameters={"generation": GENERATION})


def _texts(client: Client, job: Job) -> Texts:
    return {(result.name, result.page): result.text for result in client.results(job.id)}


@pytest.mark.parametrize("role", ["cpu", "gpu", "dispatcher"])
def test_a_killed_process_changes_no_result(stack: Stack, client: Client, undisturbed: Texts, role: str) -> None:
    assert stack.supervisor is not None
    job = _submit(client)
    until = time.monotonic() + 60
    while client.job(job.id).done < 2 and time.monotonic() < until:
        time.sleep(0.02)
    before = stack.supervisor.pid(role)
    os.kill(before, signal.SIGKILL)
    ended = client.wait(job.id, timeout=180)
    assert ended.state == "partial", ended
    assert _texts(client, ended) == undisturbed
    assert [item.error.code for item in client.items(job.id, state="failed") if item.error] == ["corrupt_media"]
    until = time.monotonic() + 60
    while stack.supervisor.pid(role) in {0, before} and time.monotonic() < until:
        time.sleep(0.05)
    assert stack.supervisor.pid(role) not in {0, before}, "the supervisor starts it again"


def test_an_api_that_dies_after_it_accepted_a_job_loses_nothing(
    stack: Stack, client: Client, undisturbed: Texts
) -> None:
    assert stack.supervisor is not None
    job = _submit(client)
    os.kill(stack.supervisor.pid("api"), signal.SIGKILL)
    ended = client.wait(job.id, timeout=180)
    assert _texts(client, ended) == undisturbed


def test_stopping_the_stack_leaves_no_process(tmp_path: Path) -> None:
    environment = {"BATCHSIGHT_ENGINE": "fake"}
    stack = Stack(tmp_path / "short", StackOptions(durable=False, environment=environment), say=lambda _: None)
    stack.start()
    assert _processes_in(tmp_path)
    stack.stop()
    assert not _processes_in(tmp_path)


def _processes_in(folder: Path) -> list[str]:
    """Command lines of processes whose environment or arguments name the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            about = process.joinpath("environ").read_bytes() + process.joinpath("cmdline").read_bytes()
            command = process.joinpath("cmdline").read_bytes()
        except OSError:
            continue  # it ended meanwhile
        if str(folder).encode() in about and int(process.name) != os.getpid():
            found.append(command.replace(b"\0", b" ").decode(errors="replace"))
    return found
