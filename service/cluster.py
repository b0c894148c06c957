"""Several machines on one Postgres: Procrastinate hands jobs to workers, and finds those whose worker died.

What a job is and what became of it, our own table says; Procrastinate knows its id alone.
"""

from typing import Any

from procrastinate import App, PsycopgConnector
from procrastinate.exceptions import ConnectorException
from sqlalchemy.orm import Session

from models import JobRecord
from service.outages import Away

TASK = "memfit.job"
_deferring = App(connector=PsycopgConnector())  # never opened: it only writes, through the session's connection


def defer(session: Session, job: JobRecord, after: str | None) -> None:
    """Hand a job over, in the session's transaction. Of those with the same `after`, one runs at a time.

    Raises:
        Away: the database does not answer.
    """
    connection: Any = session.connection().connection.driver_connection
    try:
        _deferring.configure_task(TASK, queue=job.queue, lock=after, connection=connection).defer(job=job.id)
    except ConnectorException as error:
        raise Away("database", type(error.__cause__ or error).__name__) from error
