"""Add the Lipschitz certificate of a run."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the column; earlier runs have no certificate."""
    op.add_column("runs", sa.Column("certificate", sa.JSON()))


def downgrade() -> None:
    """Drop the column."""
    with op.batch_alter_table("runs") as table:
        table.drop_column("certificate")
