"""The first schema: runs, attempts, metrics, margins."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the four tables."""
    op.create_table(
        "runs",
        sa.Column("key", sa.String(), primary_key=True),
        sa.Column("run_id", sa.Integer(), nullable=False, index=True),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("profile", sa.String(), nullable=False, index=True),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("epochs", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(), nullable=False, index=True),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.Column("started_at", sa.String()),
        sa.Column("finished_at", sa.String()),
        sa.Column("host", sa.String()),
        sa.Column("device", sa.String()),
        sa.Column("git_commit", sa.String()),
        sa.Column("packages", sa.JSON()),
        sa.Column("data_fingerprint", sa.String()),
        sa.Column("mlflow_run_id", sa.String()),
        sa.Column("checkpoints", sa.JSON(), nullable=False),
        sa.Column("error", sa.String()),
    )
    op.create_table(
        "attempts",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("key", sa.String(), sa.ForeignKey("runs.key"), nullable=False, index=True),
        sa.Column("from_epoch", sa.Integer(), nullable=False),
        sa.Column("driver", sa.String(), nullable=False),
        sa.Column("started_at", sa.String(), nullable=False),
        sa.Column("heartbeat_at", sa.String(), nullable=False),
        sa.Column("finished_at", sa.String()),
        sa.Column("outcome", sa.String()),
    )
    op.create_table(
        "metrics",
        sa.Column("key", sa.String(), sa.ForeignKey("runs.key"), primary_key=True),
        sa.Column("epoch", sa.Integer(), primary_key=True),
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("value", sa.Double(), nullable=False),
    )
    op.create_table(
        "margins",
        sa.Column("key", sa.String(), sa.ForeignKey("runs.key"), primary_key=True),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("values", sa.LargeBinary(), nullable=False),
    )


def downgrade() -> None:
    """Drop the four tables."""
    for table in ("margins", "metrics", "attempts", "runs"):
        op.drop_table(table)
