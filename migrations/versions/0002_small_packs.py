"""Small packs lie in their rows.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# Compressed already; out of line, so that a touch of the row does not copy it.
_UP = """
ALTER TABLE packs ADD COLUMN data BYTEA;
ALTER TABLE packs ALTER COLUMN data SET STORAGE EXTERNAL;
COMMENT ON COLUMN packs.data IS 'the pack itself, where it is small; null: it is a blob';
"""


def upgrade() -> None:
    """Add the column."""
    op.execute(_UP)


def downgrade() -> None:
    """Remove it; packs that lay in it are prepared anew."""
    op.execute("DELETE FROM packs WHERE data IS NOT NULL")
    op.execute("ALTER TABLE packs DROP COLUMN data")
