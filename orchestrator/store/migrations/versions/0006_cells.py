"""The published cells with a view of what was measured for them; a patch beside the commit."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Make table and view, add the column; the next `run` fills in the cells."""
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
               count(v_final.value) AS seeds,
               100 * avg(v_final.value) AS measured,
               100 * min(v_final.value) AS lowest,
               100 * max(v_final.value) AS highest,
               100 * avg(v_final.value) - cells.published AS difference
        FROM cells
        LEFT JOIN v_final ON v_final.run_id = cells.run_id
            AND v_final.digest = cells.digest
            AND v_final.metric = cells.metric
            AND v_final.seed >= cells.seed
            AND (v_final.seed - cells.seed) % 1000 = 0
        GROUP BY cells.profile, cells.place, cells.table_id, cells.row_label, cells.column_title,
                 cells.run_id, cells.metric, cells.published, cells.margin
        """
    )


def downgrade() -> None:
    """Drop all three."""
    op.execute("DROP VIEW v_cells")
    op.drop_table("cells")
    op.drop_column("runs", "git_diff")  # in place: a view stands on the table
