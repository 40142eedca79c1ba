"""Record the time of each epoch; move driver and heartbeat from attempts to runs."""

from datetime import datetime, timedelta

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

FROM_NEWEST_ATTEMPT = """
    UPDATE runs SET
    driver = (SELECT driver FROM attempts WHERE key = runs.key ORDER BY id DESC LIMIT 1),
    heartbeat_at = (SELECT heartbeat_at FROM attempts WHERE key = runs.key ORDER BY id DESC LIMIT 1)
"""
SECONDS = """
    SELECT epoch, max(CASE WHEN name = 'seconds' THEN value END) FROM metrics
    WHERE key = :key GROUP BY epoch ORDER BY epoch
"""


def upgrade() -> None:
    """Create `epochs` and move the heartbeat; fill both from the existing rows."""
    epochs = op.create_table(
        "epochs",
        sa.Column("key", sa.String(), sa.ForeignKey("runs.key"), primary_key=True),
        sa.Column("epoch", sa.Integer(), primary_key=True),
        sa.Column("recorded_at", sa.String(), nullable=False),
    )
    op.add_column("runs", sa.Column("driver", sa.String()))
    op.add_column("runs", sa.Column("heartbeat_at", sa.String()))
    op.execute(FROM_NEWEST_ATTEMPT)
    with op.batch_alter_table("attempts") as attempts:
        attempts.drop_column("heartbeat_at")
    connection = op.get_bind()
    runs = connection.execute(sa.text("SELECT key, coalesce(started_at, created_at) FROM runs"))
    for key, started_at in runs.all():
        rows = _epochs(connection, key, datetime.fromisoformat(started_at))
        if rows:
            op.bulk_insert(epochs, rows)


def _epochs(connection: sa.Connection, key: str, start: datetime) -> list[dict[str, object]]:
    """Return a run's epochs with times estimated from its start; the real ones are unknown."""
    rows: list[dict[str, object]] = []
    for epoch, seconds in connection.execute(sa.text(SECONDS), {"key": key}):
        start += timedelta(seconds=seconds or 0.0)
        stamp = start.isoformat(timespec="milliseconds")
        rows.append({"key": key, "epoch": epoch, "recorded_at": stamp})
    return rows


def downgrade() -> None:
    """Move the heartbeat back and drop the times of epochs."""
    op.add_column("attempts", sa.Column("heartbeat_at", sa.String(), server_default=""))
    op.execute(
        "UPDATE attempts SET heartbeat_at = "
        "(SELECT coalesce(heartbeat_at, '') FROM runs WHERE key = attempts.key)"
    )
    with op.batch_alter_table("attempts") as attempts:
        attempts.alter_column("heartbeat_at", nullable=False, server_default=None)
    with op.batch_alter_table("runs") as runs:
        runs.drop_column("driver")
        runs.drop_column("heartbeat_at")
    op.drop_table("epochs")
