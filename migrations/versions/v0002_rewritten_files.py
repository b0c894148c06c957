"""Models and samples are kept as they were written anew, by the digest of that; their ids stay the digests of what was uploaded.

Revision 0002. Without `content_digest`: a model of before, kept as it came, to be written anew when the service starts; a sample
that is kept as it came.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("models", "samples"):
        op.add_column(table, sa.Column("content_digest", sa.String(length=64), nullable=True))


def downgrade() -> None:
    for table in ("samples", "models"):
        op.drop_column(table, "content_digest")  # in place: SQLite may not copy a table that others refer to
