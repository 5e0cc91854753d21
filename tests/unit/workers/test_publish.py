"""The producer against a real Redis: what lies in the queues is what Celery's workers read."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from deploy.local.servers import Redis
from pipelines.control.cancel import HINT_CHANNEL
from pipelines.control.messages import (
    ExportMessage,
    InferMessage,
    Message,
    PaginateMessage,
    PlanMessage,
    PrepareMessage,
    QueueName,
)
from pipelines.jobs.errors import BrokerUnavailable
from pipelines.settings import Settings
from workers import app as celery_app
from workers import tasks
from workers.app import create_app
from workers.hints import CANCEL_CHANNEL
from workers.publish import Publisher

JOB = uuid.UUID(int=7)

MESSAGES: tuple[Message, ...] = (
    PlanMessage(job_id=JOB, interactive=False),
    PaginateMessage(job_id=JOB, docs=(1, 2), interactive=False),
    PrepareMessage(job_id=JOB, seqs=(3, 4), solo=False, interactive=True),
    InferMessage(job_id=JOB, seq=5, solo=True, interactive=False),
    InferMessage(job_id=JOB, seq=6, solo=False, interactive=True),
    ExportMessage(export_id=JOB),
)


@pytest.fixture
def publisher(redis_url: str) -> Any:
    made = Publisher(redis_url, window=3)
    yield made
    made.close()


def waiting(redis_url: str, queue: QueueName) -> list[tuple[str, list[Any]]]:
    with redis.Redis.from_url(redis_url) as client:
        raw: Any = client.lrange(str(queue), 0, -1)
    found = []
    for entry in reversed(raw):
        message = json.loads(entry)
        found.append((message["headers"]["task"], json.loads(base64.b64decode(message["body"]))[0]))
    return found


def test_messages_go_to_their_queues_in_order_with_ids_only(publisher: Publisher, redis_url: str) -> None:
    publisher.publish(MESSAGES)
    job = str(JOB)
    assert waiting(redis_url, QueueName.CPU) == [
        (tasks.PLAN, [job]),
        (tasks.PAGINATE, [job, [1, 2]]),
        (tasks.EXPORT, [job]),
    ]
    assert waiting(redis_url, QueueName.CPU_INTERACTIVE) == [(tasks.PREPARE, [job, [3, 4], False])]
    assert waiting(redis_url, QueueName.GPU) == [(tasks.INFER, [job, 5, True])]
    assert waiting(redis_url, QueueName.GPU_INTERACTIVE) == [(tasks.INFER, [job, 6, False])]


def test_a_batch_is_one_pipeline(publisher: Publisher, redis_url: str) -> None:
    publisher.publish(MESSAGES[:1])
    with redis.Redis.from_url(redis_url) as client:
        before: Any = client.info("stats")
        publisher.publish([InferMessage(job_id=JOB, seq=n, solo=False, interactive=False) for n in range(100)])
        after: Any = client.info("stats")
    reads = after["total_reads_processed"] - before["total_reads_processed"]
    assert after["total_commands_processed"] - before["total_commands_processed"] >= 100
    assert reads < 20


def test_queue_lengths_come_at_once(publisher: Publisher) -> None:
    publisher.publish(MESSAGES)
    depths = publisher.depths()
    assert depths.waiting == {"cpu": 3, "cpu.interactive": 1, "gpu": 1, "gpu.interactive": 1}


def test_a_redis_that_forgot_everything_is_recognised(publisher: Publisher, redis_url: str) -> None:
    assert publisher.depths().forgotten
    publisher.mark_memory()
    assert not publisher.depths().forgotten
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    assert publisher.depths().forgotten
    publisher.publish(MESSAGES)
    assert sum(publisher.depths().waiting.values()) == len(MESSAGES)


def test_the_apis_hint_is_left_to_the_dispatcher_when_the_queue_is_full(publisher: Publisher) -> None:
    for _ in range(5):
        publisher.plan(JOB)
    assert publisher.depths().waiting[QueueName.CPU] == 3


def test_a_cancel_is_heard_on_the_workers_channel(publisher: Publisher, redis_url: str) -> None:
    assert HINT_CHANNEL == CANCEL_CHANNEL
    with redis.Redis.from_url(redis_url) as client, client.pubsub(ignore_subscribe_messages=True) as channel:
        channel.subscribe(HINT_CHANNEL)
        channel.get_message(timeout=1)
        publisher.cancel(JOB)
        heard: Any = channel.get_message(timeout=5)
        assert heard["data"] == str(JOB).encode()


def test_a_redis_that_is_away_is_said_so_and_found_again(redis_url: str) -> None:
    away = Publisher("redis://127.0.0.1:1/0")
    for call in (away.depths, away.mark_memory, lambda: away.plan(JOB), lambda: away.publish(MESSAGES)):
        with pytest.raises(BrokerUnavailable):
            call()
    away.close()


def test_a_connection_that_was_cut_is_opened_anew(publisher: Publisher, redis_url: str) -> None:
    publisher.publish(MESSAGES)
    with redis.Redis.from_url(redis_url) as client:
        client.client_kill_filter(_type="normal", skipme=True)
    for _ in range(2):
        try:
            publisher.publish(MESSAGES)
            break
        except BrokerUnavailable:
            continue
    assert sum(publisher.depths().waiting.values()) >= 2 * len(MESSAGES)


def test_a_publisher_that_met_a_dead_redis_publishes_again_when_it_is_back(tmp_path: Path) -> None:
    with Redis(tmp_path / "redis", durable=False) as server:
        publisher = Publisher(server.url)
        publisher.publish(MESSAGES)
        server.kill()
        for _ in range(2):
            with pytest.raises(BrokerUnavailable):
                publisher.publish(MESSAGES)
        server.start()
        publisher.publish(MESSAGES)
        assert sum(publisher.depths().waiting.values()) == len(MESSAGES)
        publisher.close()


def test_a_celery_worker_runs_what_was_published(publisher: Publisher, redis_url: str) -> None:
    done: list[tuple[str, object]] = []

    class Cpu:
        def plan(self, job_id: uuid.UUID) -> None:
            done.append(("plan", job_id))

        def paginate(self, job_id: uuid.UUID, docs: object) -> None:
            done.append(("paginate", docs))

        def prepare(self, job_id: uuid.UUID, seqs: object) -> None:
            done.append(("prepare", seqs))

        def export(self, export_id: uuid.UUID) -> None:
            done.append(("export", export_id))

    class Gpu:
        def infer(self, job_id: uuid.UUID, seq: int, *, solo: bool) -> None:
            done.append(("infer", (seq, solo)))

    app: Celery = create_app(Settings(redis_url=redis_url), "gpu")
    tasks.register_cpu(app, Cpu)
    tasks.register_gpu(app, Gpu)
    publisher.publish(MESSAGES)
    with app.connection_for_read() as connection, app.amqp.TaskConsumer(connection.channel()) as queue:

        def run(message: Any) -> None:
            args, kwargs, _ = message.payload
            app.tasks[message.headers["task"]](*args, **kwargs)
            message.ack()

        queue.on_message = run
        while len(done) < len(MESSAGES):
            connection.drain_events(timeout=5)
    assert sorted(done, key=str) == sorted(
        [
            ("plan", JOB),
            ("paginate", [1, 2]),
            ("prepare", [3, 4]),
            ("export", JOB),
            ("infer", (5, True)),
            ("infer", (6, False)),
        ],
        key=str,
    )


def test_all_slots_may_acknowledge_at_the_same_moment(redis_url: str, publisher: Publisher) -> None:
    slots = 64
    app: Celery = create_app(Settings(redis_url=redis_url, engine_slots=slots), "gpu")
    publisher.publish([InferMessage(job_id=JOB, seq=seq, solo=False, interactive=False) for seq in range(slots)])
    messages: list[Any] = []
    together = threading.Barrier(slots)

    def acknowledge(message: Any) -> None:
        with message.channel.conn_or_acquire() as client:
            client.ping()  # each thread holds a connection of its own
            together.wait(30)
        message.ack()

    with app.connection_for_read() as connection, app.amqp.TaskConsumer(connection.channel()) as queue:
        queue.on_message = messages.append
        while len(messages) < slots:
            connection.drain_events(timeout=5)
        with ThreadPoolExecutor(slots) as threads:
            list(threads.map(acknowledge, messages))
        assert all(message.acknowledged for message in messages)


def test_the_names_agree_with_the_workers() -> None:
    assert set(celery_app.QUEUES) == set(QueueName)


def test_the_producer_needs_neither_celerys_app_nor_torch() -> None:
    code = (
        "import sys, workers.publish; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'celery', 'transformers', 'fastapi')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
