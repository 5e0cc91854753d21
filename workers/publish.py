"""The producer: ids into queues, and how full the queues are. Needs kombu and redis, neither Celery's app nor torch.

Messages follow Celery's protocol 2 (docs.celeryq.dev, "Message Protocol"), several in one pipeline (`Producer.batch`).
They go to their queue by name through the anonymous exchange: no binding has to be looked up for each message, and none
can be missing after a FLUSHALL.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis
from kombu import Connection, Producer
from kombu.exceptions import KombuError
from redis.backoff import NoBackoff
from redis.retry import Retry

from pipelines.control.cancel import HINT_CHANNEL
from pipelines.control.messages import (
    Depths,
    ExportMessage,
    InferMessage,
    Message,
    PaginateMessage,
    PlanMessage,
    PrepareMessage,
    QueueName,
    queue_of,
)
from pipelines.jobs.errors import BrokerUnavailable

MEMORY_KEY = "batchsight:memory"
"""Set once by the leader; gone when Redis has forgotten everything."""

_PLAN, _PAGINATE, _PREPARE, _INFER = "batchsight.plan", "batchsight.paginate", "batchsight.prepare", "batchsight.infer"
_EXPORT = "batchsight.export"
_BATCH = 256

_TRANSPORT = {
    "socket_timeout": 15,
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
    "health_check_interval": 15,
}


class Publisher:
    """One channel to Redis, opened when first needed and anew after an error. Thread-safe.

    `window`: above so many waiting messages the api's own hint is not sent; the dispatcher's comes when there is room.
    """

    def __init__(self, redis_url: str, *, window: int = 64) -> None:
        self._window = window
        self._lock = threading.Lock()
        self._redis_url = redis_url
        self._connection: Connection | None = None
        self._producer: Producer | None = None
        self._redis = redis.Redis.from_url(
            redis_url,
            socket_timeout=5,
            socket_connect_timeout=5,
            health_check_interval=15,
            retry=Retry(NoBackoff(), 1),
        )

    def publish(self, messages: Sequence[Message]) -> None:
        """Send all in one pipeline, in order. Raises `BrokerUnavailable`; some may then have been sent."""
        with self._lock, _mapped():
            try:
                if self._producer is None:
                    # A new one each time: kombu's connection cannot be used again once it is closed.
                    self._connection = Connection(self._redis_url, transport_options=_TRANSPORT)
                    self._producer = Producer(self._connection.channel())
                with self._producer.batch(max_size=_BATCH):  # type: ignore[attr-defined]  # newer than its stubs
                    for message in messages:
                        self._publish(self._producer, message)
            except BaseException:
                self._disconnect()
                raise

    def plan(self, job_id: uuid.UUID) -> None:
        """Say that a job waits to be planned, unless the queue is full. Raises `BrokerUnavailable`."""
        with _mapped():
            waiting = int(self._redis.llen(QueueName.CPU))
        if waiting < self._window:
            self.publish([PlanMessage(job_id=job_id, interactive=False)])

    def cancel(self, job_id: uuid.UUID) -> None:
        """Hint to all workers that a job was cancelled. Raises `BrokerUnavailable`."""
        with _mapped():
            self._redis.publish(HINT_CHANNEL, str(job_id))

    def depths(self) -> Depths:
        """Messages that wait, all queues in one pipeline. Raises `BrokerUnavailable`."""
        names = tuple(QueueName)
        with _mapped(), self._redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.llen(name)
            pipe.exists(MEMORY_KEY)
            *lengths, marked = pipe.execute()
        return Depths(waiting=dict(zip(names, lengths, strict=True)), forgotten=not marked)

    def mark_memory(self) -> None:
        """Leave the mark that a Redis without memory lacks. Raises `BrokerUnavailable`."""
        with _mapped():
            self._redis.set(MEMORY_KEY, "1")

    def memory(self) -> tuple[int, int]:
        """Bytes that Redis uses, and its `maxmemory` (0: no limit). Raises `BrokerUnavailable`."""
        with _mapped():
            about: Any = self._redis.info("memory")
        return int(about["used_memory"]), int(about["maxmemory"])

    def close(self) -> None:
        """Close the connections. Repeatable."""
        with self._lock:
            self._disconnect()
        self._redis.close()

    def _disconnect(self) -> None:
        self._producer = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _publish(self, producer: Producer, message: Message) -> None:
        name, arguments = _call(message)
        task_id = str(uuid.uuid4())
        producer.publish(
            (arguments, {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}),
            exchange="",
            routing_key=str(queue_of(message)),
            serializer="json",
            delivery_mode=2,
            correlation_id=task_id,
            headers={
                "lang": "py",
                "task": name,
                "id": task_id,
                "root_id": task_id,
                "parent_id": None,
                "group": None,
                "eta": None,
                "expires": None,
                "retries": 0,
                "timelimit": [None, None],
                "ignore_result": True,
            },
        )


def _call(message: Message) -> tuple[str, list[Any]]:
    if isinstance(message, ExportMessage):
        return _EXPORT, [str(message.export_id)]
    job_id = str(message.job_id)
    match message:
        case PlanMessage():
            return _PLAN, [job_id]
        case PaginateMessage():
            return _PAGINATE, [job_id, list(message.docs)]
        case PrepareMessage():
            return _PREPARE, [job_id, list(message.seqs), message.solo]
        case InferMessage():
            return _INFER, [job_id, message.seq, message.solo]


@contextmanager
def _mapped() -> Iterator[None]:
    try:
        yield
    except (redis.RedisError, KombuError, OSError) as error:
        raise BrokerUnavailable("Redis did not answer; try again") from error
