"""What MLflow was told last of a run's status."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the column; what MLflow shows of earlier runs is looked up again."""
    op.add_column("runs", sa.Column("mlflow_status", sa.String()))


def downgrade() -> None:
    """Drop the column."""
    with op.batch_alter_table("runs") as table:
        table.drop_column("mlflow_status")
