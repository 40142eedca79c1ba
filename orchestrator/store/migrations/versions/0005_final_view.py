"""Add a view of the last epoch of every finished run."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Create the view."""
    op.execute(
        """
        CREATE VIEW v_final AS
        SELECT runs.key, runs.run_id, runs.name, runs.profile, runs.seed, runs.digest,
               runs.epochs, runs.git_commit, runs.device, metrics.name AS metric, metrics.value
        FROM runs
        JOIN metrics ON metrics.key = runs.key AND metrics.epoch = runs.epochs
        WHERE runs.status = 'done'
        """
    )


def downgrade() -> None:
    """Drop the view."""
    op.execute("DROP VIEW v_final")
