"""A worker whose slots were all busy when Redis died takes messages again when Redis is back, each time."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from deploy.local.servers import Redis
from pipelines.control.messages import InferMessage, Message, PrepareMessage
from workers.app import CPU, GPU
from workers.publish import Publisher

SLOTS = 2
PATIENCE = 40.0
# Two slots; each task takes a while, and touches a file for its number at its start and another at its end.
WORKER = """
import sys, time, uuid
from pathlib import Path
from pipelines.settings import Settings
from workers import tasks
from workers.app import create_app

pool, queue, folder = sys.argv[1:]

class Work:
    def prepare(self, job_id, seqs):
        self.infer(job_id, seqs[0], solo=False)

    def infer(self, job_id, seq, *, solo):
        Path(folder, f"began-{seq}").touch()
        time.sleep(0.5)
        Path(folder, f"ended-{seq}").touch()

app = create_app(Settings(), "cpu" if pool == "prefork" else "gpu")
(tasks.register_cpu if pool == "prefork" else tasks.register_gpu)(app, Work)
app.Worker(pool=pool, concurrency=2, queues=[queue], loglevel="ERROR", without_gossip=True, without_mingle=True).start()
"""


def message(pool: str, number: int) -> Message:
    if pool == "prefork":
        return PrepareMessage(job_id=uuid.uuid4(), seqs=(number,), solo=False, interactive=False)
    return InferMessage(job_id=uuid.uuid4(), seq=number, solo=False, interactive=False)


def wait_for(folder: Path, pattern: str, count: int) -> None:
    until = time.monotonic() + PATIENCE
    while len(list(folder.glob(pattern))) < count:
        assert time.monotonic() < until, f"{pattern}: {sorted(path.name for path in folder.iterdir())}"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("pool", "queue"), [("prefork", CPU), ("threads", GPU)])
def test_a_busy_worker_takes_messages_again_after_redis_died(pool: str, queue: str, tmp_path: Path) -> None:
    folder = tmp_path / "marks"
    folder.mkdir()
    with Redis(tmp_path / "redis", durable=False) as server:
        publisher = Publisher(server.url)
        publisher.publish([message(pool, number) for number in range(SLOTS)])
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, pool, queue, str(folder)],
            env={**os.environ, "REDIS_URL": server.url},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            for busy in (SLOTS, 2 * SLOTS):
                wait_for(folder, "began-*", busy)
                server.kill()
                wait_for(folder, "ended-*", busy)  # nobody is there to be told so
                server.start()
                publisher.publish([message(pool, number) for number in range(busy, busy + SLOTS)])
            wait_for(folder, "ended-*", 3 * SLOTS)
            worker.terminate()
            assert worker.wait(PATIENCE) == 0
        finally:
            worker.kill()
            worker.wait()
            publisher.close()
