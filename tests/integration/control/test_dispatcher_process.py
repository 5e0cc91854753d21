"""The dispatcher as a process: woken at once, replaced when killed, gone cleanly when told."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from pipelines.control import cancel
from pipelines.control.messages import QueueName
from pipelines.jobs.models import JobPriority
from pipelines.jobs.outcomes import Retry
from pipelines.store import jobs
from tests.integration.store.world import World

PATIENCE = 30.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Processes:
    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, **settings: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-m", "workers.dispatcher"], env={**self._environment, **settings})
        self.started.append(process)
        return process


@pytest.fixture
def processes(database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Processes]:
    environment = {
        **os.environ,
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "BATCHSIGHT_BLOB_URL": f"file://{tmp_path}",
        "BATCHSIGHT_LEADER_LEASE_SECONDS": "1",
        "BATCHSIGHT_SWEEP_SECONDS": "0.5",
        "BATCHSIGHT_LEASE_SECONDS": "2",
    }
    made = Processes(environment)
    yield made
    for process in made.started:
        if process.poll() is None:
            process.kill()
        process.wait()


def wait_for(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)
    return found


def test_work_moves_from_stage_to_stage_and_the_job_ends(world: World, processes: Processes, redis_url: str) -> None:
    port = free_port()
    process = processes.start(BATCHSIGHT_HEALTH_PORT=str(port))
    with redis.Redis.from_url(redis_url) as client:

        def taken(queue: QueueName) -> Any:
            return client.rpop(str(queue))

        tenant = world.tenant()
        world.submitted(tenant, priority=JobPriority.INTERACTIVE)
        wait_for(lambda: taken(QueueName.CPU_INTERACTIVE))
        job = world.job(tenant, 1)
        wait_for(lambda: taken(QueueName.CPU))
        world.succeed(job, [0])
        wait_for(lambda: world.rows("SELECT state FROM jobs WHERE id = %(j)s", j=job)[0][0] == "succeeded")
        large = world.job(tenant, 40)
        with world.database.begin() as conn:
            cancel.request(conn, tenant, large)
        wait_for(lambda: world.states(large) == {"cancelled": 40})
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
        assert answer.status == 200
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        assert b"batchsight_dispatched_messages_total" in answer.read()
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0
    assert world.rows("SELECT lease_until <= now() FROM leader")[0][0]


def test_a_standby_goes_on_when_the_leader_is_killed(world: World, processes: Processes, redis_url: str) -> None:
    first = processes.start()
    wait_for(lambda: world.rows("SELECT 1 FROM leader"))
    holder = world.rows("SELECT holder FROM leader")[0][0]
    second = processes.start()
    first.kill()
    wait_for(lambda: world.rows("SELECT holder FROM leader")[0][0] != holder)
    job = world.job(world.tenant(), 1)
    with redis.Redis.from_url(redis_url) as client:
        wait_for(lambda: client.llen(str(QueueName.CPU)))
    world.claim(job, [0], lease=0.1)  # its worker dies
    wait_for(lambda: world.item(job, 0).losses == 1)
    second.send_signal(signal.SIGTERM)
    assert second.wait(PATIENCE) == 0


def test_a_database_that_drops_every_connection_is_found_again(
    world: World, processes: Processes, redis_url: str
) -> None:
    process = processes.start()
    wait_for(lambda: world.rows("SELECT 1 FROM leader"))
    world.rows(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with redis.Redis.from_url(redis_url) as client:
        for _ in range(2):
            world.submitted(world.tenant())
            wait_for(lambda: client.rpop(str(QueueName.CPU)))
        client.flushall()
        world.submitted(world.tenant())
        wait_for(lambda: client.llen(str(QueueName.CPU)) == 3)
    assert process.poll() is None


def test_a_plan_that_waits_for_its_retry_is_sent_though_preparing_is_held_back(
    world: World, processes: Processes, redis_url: str
) -> None:
    processes.start(BATCHSIGHT_READY_ITEMS="1")
    tenant = world.tenant()
    world.job(tenant, 40)
    with redis.Redis.from_url(redis_url) as client:
        wait_for(lambda: client.llen(str(QueueName.CPU)))  # one item may be prepared, the others are held back
        job = world.submitted(tenant)
        wait_for(lambda: world.rows("SELECT plan_enqueued_at FROM jobs WHERE id = %(j)s", j=job)[0][0])
        with world.database.begin() as conn:
            lease = jobs.claim_plan(conn, job, worker="w", lease=60)
            assert lease is not None
            jobs.retry_plan(conn, lease, Retry(code="source_unavailable", message="", delay=1.5))
        wait_for(lambda: world.rows("SELECT plan_enqueued_at FROM jobs WHERE id = %(j)s", j=job)[0][0])


def test_the_settings_can_be_checked_without_any_server() -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "workers.dispatcher", "--check"],
        env={**os.environ, "BATCHSIGHT_SWEEP_SECONDS": "7"},
        capture_output=True,
        check=True,
    )
    assert json.loads(checked.stdout)["sweep_seconds"] == 7.0
