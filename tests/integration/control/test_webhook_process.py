"""The dispatcher as a process sends webhooks, and another makes up for one that is killed while it sends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from standardwebhooks import Webhook

from tests.integration.control.office import deliveries, endpoint
from tests.integration.control.receiver import Receiver, say
from tests.integration.store.world import World

PATIENCE = 60.0

Start = Callable[[], subprocess.Popen[bytes]]


@pytest.fixture
def start(database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Start]:
    environment = {
        **os.environ,
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "BATCHSIGHT_BLOB_URL": f"file://{tmp_path}",
        "BATCHSIGHT_LEADER_LEASE_SECONDS": "1",
        "BATCHSIGHT_WEBHOOK_PLAIN_HTTP": "true",
        "BATCHSIGHT_WEBHOOK_NETWORKS": "127.0.0.0/8",
    }
    started: list[subprocess.Popen[bytes]] = []

    def one() -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-m", "workers.dispatcher"], env=environment))
        return started[-1]

    yield one
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()


def test_a_dispatcher_killed_while_it_sends_is_made_up_for(world: World, receiver: Receiver, start: Start) -> None:
    tenant = world.tenant()
    made = endpoint(world, tenant, receiver.url, "job.succeeded")
    let_go = threading.Event()

    def hold(handler: BaseHTTPRequestHandler) -> None:
        let_go.wait(PATIENCE)
        say(handler, 200)

    receiver.answer = hold
    first = start()
    job = world.job(tenant, 1)
    world.succeed(job, [0])  # the dispatcher ends the job by itself, and tells of it
    receiver.wait(1, PATIENCE)
    first.kill()
    first.wait()
    let_go.set()
    (row,) = deliveries(world)
    assert (row.state, row.attempt) == ("sending", 1)
    second = start()
    world.age("webhook_deliveries", "lease_until", 61)
    again = receiver.wait(2, PATIENCE)
    assert {taken.headers["webhook-id"] for taken in again} == {again[0].headers["webhook-id"]}
    assert Webhook(made.secret).verify(again[1].body, again[1].headers)["data"]["id"] == str(job)
    until = time.monotonic() + PATIENCE
    while deliveries(world)[0].state != "succeeded":
        assert time.monotonic() < until
        time.sleep(0.05)
    assert len(world.rows("SELECT 1 FROM webhook_events")) == 1
    second.send_signal(signal.SIGTERM)
    assert second.wait(PATIENCE) == 0
