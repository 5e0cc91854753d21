"""A served api on a loopback port, over the real servers, and clients for it."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from pydantic import SecretStr

from api.app import create_app
from api.auth import SCOPES
from api.client import Client, RetryPolicy
from deploy.local.servers import ObjectStore
from pipelines.settings import Settings
from pipelines.store import tenants
from pipelines.store.session import Database

PEPPER = "p" * 40
ALL_SCOPES = SCOPES


@dataclasses.dataclass(frozen=True)
class Caller:
    """A tenant and one of its keys."""

    tenant_id: uuid.UUID
    key: str


@dataclasses.dataclass
class Served:
    """A running api."""

    url: str
    settings: Settings
    database: Database
    caller: Caller
    app: Any

    def http(self, key: str | None = None) -> httpx2.Client:
        """A plain HTTP client with the caller's key (or another)."""
        return httpx2.Client(
            base_url=self.url, headers={"authorization": f"Bearer {key or self.caller.key}"}, timeout=30
        )

    def client(self, key: str | None = None) -> Client:
        """The project's own client."""
        return Client(self.url, api_key=key or self.caller.key, retry=RetryPolicy(retries=1, base=0.05))


def add_caller(database: Database, name: str, *, scopes: tuple[str, ...] = ALL_SCOPES, **quotas: Any) -> Caller:
    """A tenant of this name with a key."""
    with database.begin() as conn:
        tenant = tenants.find_tenant(conn, name) or tenants.create_tenant(conn, name, **quotas)
        key = tenants.create_key(conn, tenant.tenant_id, name="test", scopes=scopes, pepper=PEPPER)
    return Caller(tenant_id=tenant.tenant_id, key=key.secret)


@pytest.fixture
def settings(
    database_url: str, redis_url: str, bucket: str, object_store_server: ObjectStore, tmp_path: Path
) -> Settings:
    """Settings over the test's own database, Redis and bucket."""
    return Settings(
        database_url=database_url,
        redis_url=redis_url,
        s3_endpoint_url=object_store_server.endpoint,
        s3_access_key_id=object_store_server.access_key,
        s3_secret_access_key=SecretStr(object_store_server.secret_key),
        blob_url=f"s3://{bucket}/blobs",
        allowed_buckets=("scans", "media/public"),
        api_key_pepper=SecretStr(PEPPER),
        scratch_dir=tmp_path / "scratch",
        _env_file=None,
    )


@contextlib.contextmanager
def serving(settings: Settings) -> Iterator[tuple[str, Any]]:
    """Serve an application of these settings on a free port; its address."""
    app = create_app(settings)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=2)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        until = time.monotonic() + 20
        while not server.started:
            if not thread.is_alive() or time.monotonic() > until:
                raise RuntimeError("the api did not start")
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", app
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


Serve = Callable[[Settings], contextlib.AbstractContextManager[tuple[str, Any]]]


@pytest.fixture
def api(settings: Settings, database: Database) -> Iterator[Served]:
    """A served api with one tenant."""
    caller = add_caller(database, "acme")
    with serving(settings) as (url, app):
        yield Served(url=url, settings=settings, database=database, caller=caller, app=app)


@pytest.fixture
def http(api: Served) -> Iterator[httpx2.Client]:
    """A plain HTTP client."""
    with api.http() as client:
        yield client


@pytest.fixture
def client(api: Served) -> Iterator[Client]:
    """The project's own client."""
    with api.client() as made:
        yield made
