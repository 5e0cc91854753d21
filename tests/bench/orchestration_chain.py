"""The yardstick of the throughput bench: two Celery tasks in a chain, results in Redis.

The first reads a picture from S3, and cuts its tiles where it is told to: decoded in the worker itself, and thrown away
(the second task would need them from somewhere). The second does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import boto3
from botocore.config import Config
from celery import Celery

from pipelines.media.images import cut_tiles, open_image
from pipelines.media.limits import MediaLimits


def create_chain_app(environment: Mapping[str, str]) -> Celery:
    """The application of the sender and of both workers."""
    url = environment["REDIS_URL"].rsplit("/", 1)[0] + "/1"
    app = Celery("chain", broker=url, backend=url)
    app.conf.update(
        task_acks_late=True,
        worker_prefetch_multiplier=4,
        task_routes={"chain.first": {"queue": "first"}, "chain.second": {"queue": "second"}, "chain.both": "first"},
        broker_connection_retry_on_startup=True,
        # As Batchsight's own (`workers.app`): with kombu's ten, one message in some thousands waits for an hour.
        broker_transport_options={"max_connections": 80},
    )
    clients: dict[int, Any] = {}

    def read(bucket: str, key: str, *, cut: bool = False) -> int:
        if os.getpid() not in clients:
            clients[os.getpid()] = boto3.client(
                "s3",
                endpoint_url=environment["S3_ENDPOINT_URL"],
                region_name="us-east-1",
                aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
                aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
                config=Config(s3={"addressing_style": "path"}),
            )
        data = clients[os.getpid()].get_object(Bucket=bucket, Key=key)["Body"].read()
        return len(cut_tiles(open_image(data, MediaLimits()), max_tiles=12)) if cut else len(data)

    app.task(name="chain.first")(read)
    app.task(name="chain.both")(read)

    @app.task(name="chain.second")
    def second(size: int) -> str:
        return f"an answer to {size} bytes"

    return app


def serve(queue: str, pool: str, concurrency: str) -> None:
    """Serve one queue until SIGTERM."""
    create_chain_app(os.environ).Worker(
        pool=pool,
        concurrency=int(concurrency),
        queues=[queue],
        hostname=f"{queue}@chain",
        loglevel="WARNING",
        without_gossip=True,
        without_mingle=True,
    ).start()
