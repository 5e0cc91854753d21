"""Shared fixtures: real servers, one of each a test process, started when first asked for.

Every test that asks gets a database of its own (a copy of a migrated template: milliseconds), an emptied Redis, and a
bucket of its own. Nothing here is a mock.
"""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import structlog

import migrations
from deploy.local.servers import ObjectStore, Postgres, Redis
from pipelines.store.session import Database

_TEMPLATE = "template_migrated"
_numbers = itertools.count()


@pytest.fixture(autouse=True, scope="session")
def _plain_tracebacks() -> None:
    """Coloured tracebacks, the default, draw every local value: ten seconds where a statement's are many."""
    plain = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*structlog.get_config()["processors"][:-1], plain])


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """PostgreSQL for this test process."""
    with Postgres(_server_folder(tmp_path_factory, "postgres"), durable=False) as server:
        yield server


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """Redis for this test process."""
    with Redis(_server_folder(tmp_path_factory, "redis"), durable=False) as server:
        yield server


@pytest.fixture(scope="session")
def object_store_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """S3 for this test process."""
    with ObjectStore(_server_folder(tmp_path_factory, "s3")) as server:
        yield server


@pytest.fixture(scope="session")
def migrated_template(postgres_server: Postgres) -> str:
    """A migrated database that others are copied from."""
    url = postgres_server.create_database(_TEMPLATE)
    migrations.upgrade(url)
    return _TEMPLATE


@pytest.fixture
def empty_database_url(postgres_server: Postgres) -> Iterator[str]:
    """An empty database, for tests of the migrations themselves."""
    name = f"empty_{next(_numbers)}"
    yield postgres_server.create_database(name)
    postgres_server.drop_database(name)


@pytest.fixture
def database_url(postgres_server: Postgres, migrated_template: str) -> Iterator[str]:
    """A migrated database of this test's own."""
    name = f"test_{next(_numbers)}"
    yield postgres_server.create_database(name, template=migrated_template)
    postgres_server.drop_database(name)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """Connections to a migrated database of this test's own."""
    opened = Database(database_url, application_name="tests")
    yield opened
    opened.close()


@pytest.fixture
def redis_url(redis_server: Redis) -> str:
    """An empty Redis."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    return redis_server.url


@pytest.fixture
def bucket(object_store_server: ObjectStore) -> str:
    """The name of an empty bucket."""
    name = f"test-{next(_numbers)}"
    object_store_server.create_bucket(name)
    return name


@pytest.fixture
def s3(object_store_server: ObjectStore) -> Any:
    """A boto3 client of the S3 server."""
    return object_store_server.client()


@pytest.fixture(autouse=True)
def _only_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test leaves this machine: connecting anywhere but loopback or a local socket is an error."""
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex

    def allowed(sock: socket.socket, address: Any) -> bool:
        if sock.family == socket.AF_UNIX:
            return True
        host = str(address[0])
        return host.startswith("127.") or host in {"::1", "localhost", ""}

    def guarded(sock: socket.socket, address: Any) -> None:
        if not allowed(sock, address):
            raise PermissionError(f"a test tried to reach {address}")
        connect(sock, address)

    def guarded_ex(sock: socket.socket, address: Any) -> int:
        if not allowed(sock, address):
            raise PermissionError(f"a test tried to reach {address}")
        return connect_ex(sock, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    monkeypatch.setattr(socket.socket, "connect_ex", guarded_ex)


def _server_folder(factory: pytest.TempPathFactory, name: str) -> Path:
    return factory.mktemp("servers") / name
