"""The index that finds an answer which a tenant had before.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_UP = """
CREATE INDEX results_answers ON results (tenant_id, (provenance->>'answer_key'))
    WHERE (provenance->>'answer_key') IS NOT NULL
"""


def upgrade() -> None:
    """Create it on every partition."""
    op.get_bind().exec_driver_sql(_UP)


def downgrade() -> None:
    """Drop it."""
    op.get_bind().exec_driver_sql("DROP INDEX results_answers")
