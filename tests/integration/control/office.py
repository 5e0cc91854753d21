"""A notifier with its real courier, and short cuts for tests of webhooks."""

from __future__ import annotations

import time
import uuid
from ipaddress import ip_network
from typing import Any

from pipelines.control.courier import Courier
from pipelines.control.notify import Notifier, NotifyOptions
from pipelines.media.ssrf import AddressPolicy
from pipelines.store import progress, webhook_endpoints
from pipelines.store.leader import Epoch, Terms
from pipelines.store.webhook_endpoints import WithSecret
from tests.integration.store.world import World

LOOPBACK = AddressPolicy(allow_http=True, networks=(ip_network("127.0.0.0/8"),))
TERMS = Terms(lease=60, grace=60, gap=60)


class Office:
    """Sends when it is told to."""

    def __init__(self, world: World, epoch: Epoch, *, total: float = 15.0, policy: AddressPolicy = LOOPBACK) -> None:
        self.world, self.epoch = world, epoch
        self.courier = Courier(policy, total_seconds=total)
        self.notifier = Notifier(world.database, self.courier.send, options=NotifyOptions(lease=60))

    def send(self) -> int:
        """Send what is due and wait until all of it is recorded."""
        sent = self.notifier.tick(self.epoch)
        until = time.monotonic() + 60
        while self.notifier.flying:
            assert time.monotonic() < until
            time.sleep(0.01)
        return sent

    def close(self) -> None:
        self.notifier.close()
        self.courier.close()


def endpoint(world: World, tenant: uuid.UUID, url: str, *events: str) -> WithSecret:
    with world.database.begin() as conn:
        return webhook_endpoints.insert(conn, tenant, name="", url=url, event_types=events or ("*",))


def ended(world: World, tenant: uuid.UUID, **fields: Any) -> uuid.UUID:
    job = world.job(tenant, 1, **fields)
    world.succeed(job, [0])
    with world.database.begin() as conn:
        progress.finalise(conn, job)
    return job


def deliveries(world: World) -> list[Any]:
    return world.rows("SELECT * FROM webhook_deliveries ORDER BY id")


def make_due(world: World) -> None:
    world.rows("UPDATE webhook_deliveries SET next_at = now() WHERE state = 'pending' RETURNING 1")
