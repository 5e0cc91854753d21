"""Triggers for tests: the database itself refuses any change of what has ended. Production has no triggers."""

from __future__ import annotations

from pipelines.store.session import Database

_FUNCTION = """
CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'terminal row of %% changed: %% -> %%', TG_TABLE_NAME, OLD, NEW;
END $$
"""
_TRIGGERS = (
    """CREATE TRIGGER terminal_items BEFORE UPDATE OR DELETE ON items FOR EACH ROW
       WHEN (OLD.state IN ('succeeded', 'failed', 'cancelled')) EXECUTE FUNCTION refuse_change()""",
    "CREATE TRIGGER terminal_results BEFORE UPDATE OR DELETE ON results FOR EACH ROW EXECUTE FUNCTION refuse_change()",
    """CREATE TRIGGER terminal_jobs BEFORE UPDATE OR DELETE ON jobs FOR EACH ROW
       WHEN (OLD.finished_at IS NOT NULL) EXECUTE FUNCTION refuse_change()""",
)


def refuse_changes_of_terminal_rows(database: Database) -> None:
    """Install the triggers; a violation raises in the statement that commits it.

    Each in a transaction of its own: a stack may be running, and one that holds two tables' locks deadlocks with it.
    """
    for statement in (_FUNCTION, *_TRIGGERS):
        with database.begin() as conn:
            conn.exec_driver_sql(statement)
