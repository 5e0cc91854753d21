"""The dispatcher's webhooks in a thread, for tests of the api: the real courier to receivers on loopback."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from pipelines.settings import Settings
from pipelines.store import leader
from pipelines.store.leader import Terms
from pipelines.store.session import Database
from workers.webhooks import Webhooks


def for_loopback(settings: Settings) -> Settings:
    """Settings under which webhooks may go to this machine over plain http."""
    return settings.model_copy(update={"webhook_plain_http": True, "webhook_networks": ("127.0.0.0/8",)})


@contextlib.contextmanager
def sending(settings: Settings, database: Database) -> Iterator[None]:
    """Send what is due while the context is open."""
    with database.begin() as conn:
        epoch = leader.acquire(conn, "test", Terms(lease=600, grace=60, gap=600))
    assert epoch is not None
    webhooks = Webhooks(settings, "test")
    stop = threading.Event()

    def steps() -> None:
        while not stop.is_set():
            webhooks.step(epoch)

    thread = threading.Thread(target=steps)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        webhooks.wake()
        thread.join(30)
        webhooks.close()
