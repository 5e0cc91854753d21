"""What the descriptions of the tables share: the metadata with its naming rule, and the columns that recur."""

from __future__ import annotations

import enum

from sqlalchemy import Column, DateTime, MetaData, text

metadata = MetaData(
    naming_convention={
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "pk": "%(table_name)s_pkey",
    }
)

NOW = text("now()")
EMPTY = text("'{}'::jsonb")


def one_of(column: str, values: type[enum.StrEnum]) -> str:
    """The condition that a column holds one of the values, as a CHECK writes it."""
    return f"{column} IN ({', '.join(repr(str(v)) for v in values)})"


def timestamp(name: str, *, nullable: bool = True, now: bool = False) -> Column[object]:
    """A moment in time; `now`: of the insert unless given."""
    return Column(name, DateTime(timezone=True), nullable=nullable, server_default=NOW if now else None)
