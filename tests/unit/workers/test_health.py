"""Where a worker's health endpoint listens, and how it is reached."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from pipelines.settings import Settings
from workers.health import HealthServer, health_url
from workers.probe import answers


@contextmanager
def served(healthy: Callable[[], bool], **options: str) -> Iterator[HealthServer]:
    server = HealthServer(0, healthy, **options)
    try:
        yield server
    finally:
        server.close()


def test_nobody_outside_of_this_machine_is_answered_unless_it_is_said() -> None:
    assert Settings(_env_file=None).health_host == "127.0.0.1"
    with served(lambda: True) as server:
        assert answers(health_url("127.0.0.1", server.port))
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.2", server.port), timeout=2)


def test_a_container_listens_on_all_its_addresses() -> None:
    with served(lambda: True, host="0.0.0.0") as server:
        for address in ("127.0.0.1", "127.0.0.2"):
            assert answers(health_url(address, server.port))
        assert answers(health_url("0.0.0.0", server.port))


def test_ipv6_is_an_address_too() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with served(lambda: True, host="::1") as server:
        assert answers(health_url("::1", server.port))


def test_health_is_what_is_asked_at_that_moment() -> None:
    sick = threading.Event()
    with served(lambda: not sick.is_set()) as server:
        assert answers(health_url("127.0.0.1", server.port))
        sick.set()
        assert not answers(health_url("127.0.0.1", server.port))
        assert not answers(f"http://127.0.0.1:{server.port}/other")
