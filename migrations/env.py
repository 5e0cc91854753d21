"""Alembic's environment: always online, on the address that `migrations.upgrade` or `downgrade` hands over."""

from __future__ import annotations

from alembic import context
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from pipelines.store.session import sqlalchemy_url
from pipelines.store.tables import metadata

_LOCK = text("SELECT pg_advisory_xact_lock(hashtext('batchsight.migrations'))")


def _run() -> None:
    engine = create_engine(sqlalchemy_url(context.config.attributes["database_url"]), poolclass=NullPool)
    with engine.begin() as connection:
        # Several processes may start at once; the second waits here and then finds nothing to do.
        connection.execute(_LOCK)
        context.configure(connection=connection, target_metadata=metadata, transaction_per_migration=False)
        context.run_migrations()
    engine.dispose()


_run()
