"""Bytes of profiles and checkpoints, which count as their holders'.

Revision 0008. Those that are there already count nothing: their sizes are the files' to say.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None
ADDED = (("profiles", "content_bytes"), ("plans", "checkpoint_bytes"))


def upgrade() -> None:
    for table, column in ADDED:
        op.add_column(table, sa.Column(column, sa.BigInteger(), server_default="0", nullable=False))


def downgrade() -> None:
    for table, column in ADDED:
        op.drop_column(table, column)
