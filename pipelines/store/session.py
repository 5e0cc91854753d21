"""Connections and transactions. Every write of the project happens inside `Database.begin`.

A `Database` may be created before a fork and used after it: each process gets its own pool at its first transaction
(libpq connections must not be shared, and a pool inherited from the parent would be).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import psycopg
from sqlalchemy import Connection, Dialect, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, DisconnectionError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from pipelines.jobs.errors import StoreUnavailable

STATEMENT_TIMEOUT = 30.0
"""Seconds. Everything on the path takes milliseconds; bulk work is cut into batches that stay far below this."""

IDLE_IN_TRANSACTION_TIMEOUT = 10.0
"""Seconds. A process that freezes inside a transaction loses its row locks after so long."""

_TRUSTED_SECONDS = 1.0
"""A connection that was used so recently is not asked whether it is alive: no server restarts within that time, and a
question for each transaction is a sixth of what a transaction here costs."""

_KEEPALIVES = {"keepalives": 1, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}


def sqlalchemy_url(url: str) -> str:
    """`url` (any spelling of a PostgreSQL address) with psycopg 3 as its driver."""
    return make_url(url).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


def libpq_url(url: str) -> str:
    """`url` in the form that libpq and psycopg read: no driver in its scheme."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


class Database:
    """A pool of connections to one database. Thread-safe, fork-safe, lazy: the first transaction connects.

    `pool_size`: connections kept; as many again may be opened for a moment. `statement_timeout` in seconds.
    """

    def __init__(
        self,
        url: str,
        *,
        pool_size: int = 5,
        application_name: str = "",
        statement_timeout: float = STATEMENT_TIMEOUT,
    ) -> None:
        self.url = libpq_url(url)
        self._address = sqlalchemy_url(url)
        self._pool_size = pool_size
        self._application_name = application_name
        self._statement_timeout = statement_timeout
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._pid = os.getpid()

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """One transaction: commits when the block ends, rolls back when it raises.

        Raises `StoreUnavailable` where the server did not answer, timed out, or broke a deadlock in our disfavour; the
        transaction may then have been committed or not (see `pipelines.steps.complete` for how that is settled).
        """
        try:
            with self._own_engine().begin() as conn:
                yield conn
        except (OperationalError, InterfaceError, PoolTimeout, psycopg.OperationalError) as error:
            raise StoreUnavailable("the database did not answer; try again") from error
        except DBAPIError as error:
            if error.connection_invalidated:
                raise StoreUnavailable("the database did not answer; try again") from error
            raise

    def close(self) -> None:
        """Close the pool. Repeatable; a later transaction opens a new one."""
        with self._lock:
            if self._engine is not None and self._pid == os.getpid():
                self._engine.dispose()
            self._engine = None

    def _own_engine(self) -> Engine:
        with self._lock:
            if self._pid != os.getpid():
                if self._engine is not None:
                    self._engine.dispose(close=False)  # the sockets belong to the parent
                self._engine = None
                self._pid = os.getpid()
            if self._engine is None:
                self._engine = self._create()
            return self._engine

    def _create(self) -> Engine:
        options = " ".join(
            f"-c {name}={value}"
            for name, value in {
                "statement_timeout": int(self._statement_timeout * 1000),
                "idle_in_transaction_session_timeout": int(IDLE_IN_TRANSACTION_TIMEOUT * 1000),
                "timezone": "UTC",
                "jit": "off",  # compiling a plan costs more than any statement here
                # A plan made while a month's partition was empty is kept when it has filled: never by reading it whole.
                "enable_seqscan": "off",
            }.items()
        )
        engine = create_engine(
            self._address,
            pool_size=self._pool_size,
            max_overflow=self._pool_size,
            pool_timeout=10,
            connect_args={
                "application_name": self._application_name or "batchsight",
                "connect_timeout": 5,
                "options": options,
                **_KEEPALIVES,
            },
        )
        event.listen(engine, "checkin", _note_use)
        event.listen(engine, "checkout", partial(_ask_whether_alive, engine.dialect))
        return engine


def _note_use(_connection: object, record: Any) -> None:
    record.info["used"] = time.monotonic()


def _ask_whether_alive(dialect: Dialect, connection: Any, record: Any, _proxy: object) -> None:
    """Like SQLAlchemy's own `pool_pre_ping`, but only for what has lain in the pool for a while."""
    used = record.info.get("used")
    if used is None or time.monotonic() - used < _TRUSTED_SECONDS:
        return
    try:
        dialect.do_ping(connection)
    except psycopg.Error as error:
        raise DisconnectionError("the connection is gone") from error  # the pool takes another
