"""Add the origin of each attempt: machine, commit and its changes, packages."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

COLUMNS = {
    "host": sa.String,
    "device": sa.String,
    "gpu_driver": sa.String,
    "git_commit": sa.String,
    "git_diff": sa.String,
    "packages": sa.JSON,
}


def upgrade() -> None:
    """Add the columns. So far a run had the origin of its last attempt only."""
    for name, kind in COLUMNS.items():
        op.add_column("attempts", sa.Column(name, kind()))
    op.execute(
        """
        UPDATE attempts
        SET (host, device, git_commit, git_diff, packages) = (
            SELECT host, device, git_commit, git_diff, packages
            FROM runs WHERE runs.key = attempts.key
        )
        WHERE id IN (SELECT max(id) FROM attempts GROUP BY key)
        """
    )


def downgrade() -> None:
    """Drop the columns."""
    for name in COLUMNS:
        op.drop_column("attempts", name)
