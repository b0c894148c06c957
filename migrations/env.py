"""Runs migrations, on the connection the service gives or, for Alembic's own command, on the settings' database."""

from alembic import context
from sqlalchemy import Connection

from models import Record
from service.database import connect
from service.settings import Settings


def run(connection: Connection) -> None:
    # SQLite cannot alter a constraint in place: batch mode copies the table.
    context.configure(connection=connection, target_metadata=Record.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


given: Connection | None = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    with connect(Settings().url).begin() as own:
        run(own)
