"""Move the heartbeat from every run to its driver."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

FROM_RUNS = """
    SELECT driver, min(heartbeat_at), max(heartbeat_at) FROM runs
    WHERE driver IS NOT NULL AND heartbeat_at IS NOT NULL GROUP BY driver
"""


def upgrade() -> None:
    """Create `drivers` and fill it from the runs; the earlier drivers have ended."""
    drivers = op.create_table(
        "drivers",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("process", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.String(), nullable=False),
        sa.Column("heartbeat_at", sa.String(), nullable=False),
        sa.Column("beats", sa.Integer(), nullable=False),
        sa.Column("ended_at", sa.String()),
    )
    for name, first, last in op.get_bind().execute(sa.text(FROM_RUNS)).all():
        host, _, process = name.rpartition(":")
        row = {"id": name, "host": host, "process": int(process), "beats": 0}
        times = {"started_at": first, "heartbeat_at": last, "ended_at": last}
        op.bulk_insert(drivers, [row | times])
    op.drop_column("runs", "heartbeat_at")  # in place: views stand on the table


def downgrade() -> None:
    """Move the heartbeat back, and name a run's driver by its host and process."""
    op.add_column("runs", sa.Column("heartbeat_at", sa.String()))
    op.execute(
        "UPDATE runs SET heartbeat_at = (SELECT heartbeat_at FROM drivers WHERE id = runs.driver)"
    )
    op.execute(
        "UPDATE runs SET driver = "
        "(SELECT host || ':' || process FROM drivers WHERE id = runs.driver)"
    )
    op.drop_table("drivers")
