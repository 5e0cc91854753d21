"""The migrated database and the tables' description agree in everything that PostgreSQL's catalog knows of them."""

from __future__ import annotations

import psycopg
import pytest
from sqlalchemy import create_engine

import migrations
from pipelines.store.session import Database, libpq_url, sqlalchemy_url
from pipelines.store.tables import PARTITIONED, metadata

COLUMNS = """
SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid),
       col_description(c.oid, a.attnum)
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
  AND c.relname <> 'alembic_version'
"""
CONSTRAINTS = """
SELECT c.relname, k.conname, pg_get_constraintdef(k.oid)
FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
WHERE c.relnamespace = 'public'::regnamespace AND NOT c.relispartition AND c.relname <> 'alembic_version'
"""
INDEXES = """
SELECT c.relname, i.relname, pg_get_indexdef(i.oid)
FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class c ON c.oid = x.indrelid
WHERE c.relnamespace = 'public'::regnamespace AND NOT c.relispartition AND c.relname <> 'alembic_version'
"""
STORAGE = """
SELECT relname, relkind::text, array_to_string(reloptions, ','), pg_get_partkeydef(oid)
FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
  AND relname <> 'alembic_version'
"""

Catalog = dict[str, set[tuple[object, ...]]]


def catalog(url: str) -> Catalog:
    with psycopg.connect(libpq_url(url)) as conn:
        return {
            name: set(conn.execute(query).fetchall())
            for name, query in {
                "columns": COLUMNS,
                "constraints": CONSTRAINTS,
                "indexes": INDEXES,
                "storage": STORAGE,
            }.items()
        }


def differences(one: Catalog, other: Catalog) -> dict[str, set[tuple[object, ...]]]:
    found = {name: one[name] ^ other[name] for name in one}
    return {name: rows for name, rows in found.items() if rows}


@pytest.fixture
def described(empty_database_url: str) -> Catalog:
    engine = create_engine(sqlalchemy_url(empty_database_url))
    metadata.create_all(engine)
    engine.dispose()
    return catalog(empty_database_url)


def test_the_migrations_build_what_the_tables_describe(described: Catalog, database_url: str) -> None:
    assert len(described["columns"]) > 100
    assert differences(described, catalog(database_url)) == {}


@pytest.mark.parametrize(
    ("drift", "kind"),
    [
        ("ALTER TABLE jobs ALTER COLUMN priority TYPE integer", "columns"),
        ("ALTER TABLE jobs ALTER COLUMN item_count SET DEFAULT 1", "columns"),
        ("ALTER TABLE items ADD COLUMN extra text", "columns"),
        ("ALTER TABLE items ALTER COLUMN doc DROP NOT NULL", "columns"),
        ("ALTER TABLE items DROP CONSTRAINT items_pack_check", "constraints"),
        ("ALTER TABLE api_keys DROP CONSTRAINT api_keys_tenant_id_fkey", "constraints"),
        ("DROP INDEX items_leased", "indexes"),
        ("DROP INDEX items_ready; CREATE INDEX items_ready ON items (job_id, seq) WHERE state = 'ready'", "indexes"),
        ("ALTER TABLE job_deltas RESET (autovacuum_vacuum_threshold)", "storage"),
    ],
)
def test_a_planted_drift_is_caught(described: Catalog, database_url: str, drift: str, kind: str) -> None:
    with psycopg.connect(libpq_url(database_url)) as conn:
        conn.execute(drift)
    assert kind in differences(described, catalog(database_url))


def test_partitions_have_every_index_and_constraint_of_their_parent(database_url: str) -> None:
    with psycopg.connect(libpq_url(database_url)) as conn:
        for table in PARTITIONED:
            children = [
                row[0]
                for row in conn.execute(
                    "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = %s::regclass", (table,)
                )
            ]
            assert len(children) >= 4  # the default, this month and the next ones
            parent = conn.execute("SELECT count(*) FROM pg_index WHERE indrelid = %s::regclass", (table,)).fetchone()
            for child in children:
                mine = conn.execute("SELECT count(*) FROM pg_index WHERE indrelid = %s::regclass", (child,)).fetchone()
                assert mine == parent, child


def test_an_empty_database_goes_up_down_and_up_again(empty_database_url: str, database_url: str) -> None:
    migrations.upgrade(empty_database_url)
    migrations.upgrade(empty_database_url)  # repeatable
    assert differences(catalog(empty_database_url), catalog(database_url)) == {}
    migrations.downgrade(empty_database_url, "base")
    assert all(not rows for rows in catalog(empty_database_url).values())
    migrations.upgrade(empty_database_url)
    assert differences(catalog(empty_database_url), catalog(database_url)) == {}


def test_a_migrated_database_takes_a_job_at_once(empty_database_url: str) -> None:
    migrations.upgrade(empty_database_url)
    database = Database(empty_database_url)
    with database.begin() as conn:
        assert conn.exec_driver_sql("SELECT to_regclass('items_' || to_char(now(), 'YYYYMM')) IS NOT NULL").scalar_one()
    database.close()
