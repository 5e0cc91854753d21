"""The control: plain Celery, `acks_late`, Redis as the only memory. Under the same kinds of harm it loses what it took.

`python -m tests.chaos.celery_control --json PATH` measures how much.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import redis
from celery import Celery

from deploy.local.servers import Redis

_QUEUE = "plain"
_REPOSITORY = Path(__file__).resolve().parents[2]


def create_plain_app(url: str) -> Celery:
    """Acknowledge late, put back what a dead child held: what is usually advised."""
    app = Celery("plain", broker=url)
    app.conf.update(
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        task_ignore_result=True,
        task_default_queue=_QUEUE,
        broker_connection_retry_on_startup=True,
        broker_transport_options={"visibility_timeout": 5},
    )

    @app.task(name="plain.work")
    def work(number: int, folder: str) -> None:
        time.sleep(0.01)
        Path(folder, str(number)).touch()

    return app


def run_control(folder: Path, *, items: int, kills: int, flush: bool) -> dict[str, int]:
    """Send `items`, kill the worker `kills` times, empty Redis once if `flush`; how many were never done."""
    done = folder / "done"
    done.mkdir(parents=True)
    with Redis(folder / "redis", durable=False) as server:
        app = create_plain_app(server.url)
        for number in range(items):
            app.send_task("plain.work", (number, str(done)))
        for _ in range(kills):
            worker = _worker(server.url)
            _until(done, _count(done) + 10, 30.0)
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
        left = items - _count(done)
        if flush:
            with redis.Redis.from_url(server.url) as client:
                client.flushall()
        worker = _worker(server.url)
        _settle(done, items)
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
    return {"sent": items, "kills": kills, "left_at_flush": left if flush else 0, "lost": items - _count(done)}


def _worker(url: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.celery_control", "--worker", url],
        cwd=_REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _count(done: Path) -> int:
    return sum(1 for _ in done.iterdir())


def _until(done: Path, count: int, seconds: float) -> None:
    until = time.monotonic() + seconds
    while _count(done) < count and time.monotonic() < until:
        time.sleep(0.02)


def _settle(done: Path, items: int) -> None:
    """Until all is done, or nothing has come for longer than the visibility timeout brings things back."""
    last, since = -1, time.monotonic()
    while (count := _count(done)) < items:
        if count != last:
            last, since = count, time.monotonic()
        elif time.monotonic() - since > 20:
            return
        time.sleep(0.2)


def main() -> int:
    """Serve as the worker, or run the control."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.celery_control", description=__doc__)
    parser.add_argument("--worker", metavar="URL")
    parser.add_argument("--items", type=int, default=2_000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    if chosen.worker:
        create_plain_app(chosen.worker).Worker(
            pool="prefork", concurrency=2, loglevel="ERROR", without_gossip=True, without_mingle=True
        ).start()
        return 0
    with tempfile.TemporaryDirectory(prefix="batchsight-control-") as folder:
        report = run_control(Path(folder), items=chosen.items, kills=chosen.kills, flush=True)
    print(f"{report['lost']} of {report['sent']} lost after {report['kills']} kills and one FLUSHALL")
    if chosen.json:
        chosen.json.write_text(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
