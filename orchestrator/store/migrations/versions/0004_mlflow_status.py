"""Add the status of a run that was last sent to MLflow."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the column; earlier runs are sent to MLflow again."""
    op.add_column("runs", sa.Column("mlflow_status", sa.String()))


def downgrade() -> None:
    """Drop the column."""
    with op.batch_alter_table("runs") as table:
        table.drop_column("mlflow_status")
