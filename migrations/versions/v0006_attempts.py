"""Attempts of jobs, their queue and their trace; which server works on a request.

Revision 0006. `starts` counted what `attempt` numbers; every start but the last was interrupted.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # In place, without batches: SQLite may not copy a table that others refer to.
    op.execute("ALTER TABLE jobs RENAME COLUMN starts TO attempt")
    op.add_column("jobs", sa.Column("interruptions", sa.Integer(), server_default="0", nullable=False))
    op.add_column("jobs", sa.Column("queue", sa.String(length=16), server_default="cpu", nullable=False))
    op.add_column("jobs", sa.Column("trace", sa.String(length=64), nullable=True))
    op.execute("UPDATE jobs SET interruptions = attempt - 1 WHERE attempt > 1")
    op.add_column("replies", sa.Column("server", sa.String(length=36), nullable=True))


def downgrade() -> None:
    op.drop_column("replies", "server")
    for column in ("trace", "queue", "interruptions"):
        op.drop_column("jobs", column)
    op.execute("ALTER TABLE jobs RENAME COLUMN attempt TO starts")
