"""Connections that the server has closed: what has lain in the pool is asked first, what was just used is not."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from pipelines.jobs.errors import StoreUnavailable
from pipelines.store import session
from pipelines.store.session import Database

NAME = "test-of-sessions"


@pytest.fixture
def mine(database: Database) -> Iterator[Database]:
    other = Database(database.url, pool_size=2, application_name=NAME)
    yield other
    other.close()


def backend(database: Database) -> int:
    with database.begin() as conn:
        return int(conn.exec_driver_sql("SELECT pg_backend_pid()").scalar_one())


def cut_off(database: Database) -> None:
    with psycopg.connect(database.url, autocommit=True) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = %s", (NAME,)
        )


def test_a_connection_that_lay_in_the_pool_and_died_is_replaced_in_silence(
    mine: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_TRUSTED_SECONDS", 0.0)
    first = backend(mine)
    assert backend(mine) == first
    cut_off(mine)
    assert backend(mine) != first


def test_one_that_was_just_used_is_not_asked_and_costs_one_transaction_when_it_died(
    mine: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_TRUSTED_SECONDS", 3_600.0)
    first = backend(mine)
    cut_off(mine)
    with pytest.raises(StoreUnavailable):
        backend(mine)
    assert backend(mine) != first
