"""The Celery application: queues by resource, and settings that were each measured or read in Celery's source.

The message is a hint, so nothing here has to be perfect; but three settings would do harm by themselves: the visibility
timeout redelivers work that still runs (6 hours: longer than any item), `task_reject_on_worker_lost` loops a poison
message without bound (off: the lease's loss counter decides), a prefetch above 1 hoards what idle workers could have.
"""

from __future__ import annotations

from typing import Any, Literal

from celery import Celery, Task
from kombu import Exchange, Queue

from pipelines.settings import Settings
from workers.request import KnowsLoop

Role = Literal["cpu", "gpu", "publisher"]

CPU, CPU_INTERACTIVE = "cpu", "cpu.interactive"
GPU, GPU_INTERACTIVE = "gpu", "gpu.interactive"
QUEUES = (CPU, CPU_INTERACTIVE, GPU, GPU_INTERACTIVE)

_EXCHANGE = Exchange("batchsight", type="direct", durable=True)

_COMMON: dict[str, Any] = {
    "task_serializer": "json",
    "accept_content": ["json"],
    "task_ignore_result": True,
    "result_backend": None,
    "task_acks_late": True,
    "task_reject_on_worker_lost": False,
    "worker_prefetch_multiplier": 1,
    "task_create_missing_queues": False,
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    "worker_enable_remote_control": False,
    "worker_send_task_events": False,
    "worker_hijack_root_logger": False,
    "worker_redirect_stdouts": False,
    "broker_transport_options": {
        "visibility_timeout": 21_600,
        "socket_timeout": 15,
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
        "health_check_interval": 15,
        "queue_order_strategy": "priority",  # in the order they are consumed: interactive first
    },
}

_MORE_CONNECTIONS = 16
"""Connections to Redis beside those of the slots: the consumer's own."""

_BY_ROLE: dict[Role, dict[str, Any]] = {
    "cpu": {
        "worker_max_tasks_per_child": 200,
        "worker_max_memory_per_child": 1_500_000,  # KiB
        "task_soft_time_limit": 240,
        "task_time_limit": 300,
    },
    "gpu": {},  # a thread pool ignores time limits: the item's own deadline and the engine's watchdog stand in
    "publisher": {},
}


class _Task(Task):  # type: ignore[type-arg]  # generic in its stubs alone
    Request = "workers.request:AcknowledgedRequest"


def create_app(settings: Settings, role: Role) -> Celery:
    """The application of one process."""
    app: Celery = Celery("batchsight", broker=settings.redis_url, task_cls=_Task)
    app.steps["consumer"].add(KnowsLoop)
    app.conf.update(_COMMON)
    app.conf.update(_BY_ROLE[role])
    # Each slot may acknowledge at the same moment, over a connection of its own. kombu's default is 10: the eleventh
    # acknowledgement would fail as if Redis were gone, and a message that was just being read would go with it.
    connections = settings.engine_slots + _MORE_CONNECTIONS
    app.conf.broker_transport_options = {**_COMMON["broker_transport_options"], "max_connections": connections}
    queues = [Queue(name, _EXCHANGE, routing_key=name) for name in QUEUES]
    app.conf.update(
        task_queues=queues,
        task_default_queue=CPU,
        task_default_exchange=_EXCHANGE.name,
        task_default_routing_key=CPU,
    )
    return app
