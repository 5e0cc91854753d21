"""The schema's history, by Alembic, without an ini file: `upgrade` and `downgrade` are all there is to call.

`upgrade` also creates the partitions of the months around now, so that a database is ready as soon as it returns.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config

from pipelines.store import partitions
from pipelines.store.session import Database

_HERE = Path(__file__).resolve().parent


def upgrade(database_url: str, revision: str = "head") -> None:
    """Bring the database at `database_url` to `revision`. Repeatable, and safe from several processes at once."""
    command.upgrade(_config(database_url), revision)
    if revision == "head":
        database = Database(database_url, pool_size=1, application_name="batchsight-migrations")
        try:
            with database.begin() as conn:
                partitions.create_ahead(conn)
        finally:
            database.close()


def downgrade(database_url: str, revision: str) -> None:
    """Take the database at `database_url` back to `revision` (`base`: everything is dropped, the data too)."""
    command.downgrade(_config(database_url), revision)


def _config(database_url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_HERE).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["database_url"] = database_url
    return config
