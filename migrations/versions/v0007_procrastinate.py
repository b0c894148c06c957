"""Procrastinate's tables and functions, on Postgres: who runs which job.

Revision 0007. The whole schema of the installed version, at least that of `MADE_FOR`: Procrastinate's single migrations cannot run in one
transaction. A version with migrations after `MADE_FOR` needs a revision of its own, which runs those where they are missing.
"""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

MADE_FOR = "03.10.00"
DROP = """
DO $$ DECLARE found record; BEGIN
  FOR found IN SELECT tablename AS name FROM pg_tables WHERE schemaname = current_schema() AND tablename LIKE 'procrastinate\\_%' LOOP
    EXECUTE format('DROP TABLE %I CASCADE', found.name);
  END LOOP;
  FOR found IN SELECT oid::regprocedure AS name FROM pg_proc
      WHERE pronamespace = current_schema()::regnamespace AND proname LIKE 'procrastinate\\_%' LOOP
    EXECUTE format('DROP FUNCTION %s CASCADE', found.name);
  END LOOP;
  FOR found IN SELECT typname AS name FROM pg_type
      WHERE typnamespace = current_schema()::regnamespace AND typname LIKE 'procrastinate\\_%' AND typtype IN ('c', 'e') LOOP
    EXECUTE format('DROP TYPE %I CASCADE', found.name);
  END LOOP;
END $$
"""


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        from procrastinate.schema import SchemaManager  # without Postgres the service does without it

        _run(SchemaManager.get_schema())


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        _run(DROP)


def _run(script: str) -> None:
    """Statements as they are: SQLAlchemy would look for parameters in them."""
    connection = op.get_bind().connection.driver_connection
    assert connection is not None
    connection.execute(script)
