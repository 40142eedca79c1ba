"""Add the published cells, a view of their measured values, and uncommitted changes."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Create the table and the view and add the column; the next `run` fills in the cells."""
    op.add_column("runs", sa.Column("git_diff", sa.String()))
    op.create_table(
        "cells",
        sa.Column("profile", sa.String(), primary_key=True),
        sa.Column("place", sa.Integer(), primary_key=True),
        sa.Column("table_id", sa.String(), nullable=False),
        sa.Column("row_label", sa.String(), nullable=False),
        sa.Column("column_title", sa.String(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("metric", sa.String(), nullable=False),
        sa.Column("published", sa.Double(), nullable=False),
        sa.Column("margin", sa.Double(), nullable=False),
    )
    op.execute(
        """
        CREATE VIEW v_cells AS
        SELECT cells.profile, cells.place, cells.table_id, cells.row_label, cells.column_title,
               cells.run_id, cells.metric, cells.published, cells.margin,
               count(metrics.value) AS seeds,
               100 * avg(metrics.value) AS measured,
               100 * min(metrics.value) AS lowest,
               100 * max(metrics.value) AS highest,
               100 * avg(metrics.value) - cells.published AS difference
        FROM cells
        LEFT JOIN runs ON runs.run_id = cells.run_id
            AND runs.digest = cells.digest
            AND runs.status = 'done'
            AND runs.seed >= cells.seed
            AND (runs.seed - cells.seed) % 1000 = 0
        LEFT JOIN metrics ON metrics.key = runs.key
            AND metrics.epoch = runs.epochs
            AND metrics.name = cells.metric
        GROUP BY cells.profile, cells.place, cells.table_id, cells.row_label, cells.column_title,
                 cells.run_id, cells.metric, cells.published, cells.margin
        """
    )


def downgrade() -> None:
    """Drop the view, the table and the column."""
    op.execute("DROP VIEW v_cells")
    op.drop_table("cells")
    op.drop_column("runs", "git_diff")  # in place: a view stands on the table
