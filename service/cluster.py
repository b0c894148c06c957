"""Several machines on one Postgres: Procrastinate hands jobs to workers, and finds those whose worker died.

What a job is and what became of it, our own table says; Procrastinate knows its id alone, in a row for each time it is handed over. So a
worker that was taken for dead, and is not, ends its own row and no other.
"""

from datetime import timedelta
from typing import Any

from procrastinate import App, PsycopgConnector
from procrastinate.exceptions import AlreadyEnqueued, ConnectorException
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from models import JobRecord, JobState
from models.base import now
from service.outages import Away

TASK = "memfit.job"
ACTIVE = (JobState.QUEUED, JobState.RUNNING)
HAS_ROW = "EXISTS (SELECT 1 FROM procrastinate_jobs WHERE task_name = :task AND args->>'job' = jobs.id AND status IN ('todo', 'doing'))"
_deferring = App(connector=PsycopgConnector())  # never opened: it only writes, through the session's connection


def defer(session: Session, job: JobRecord, after: str | None) -> None:
    """Hand a job over, in the session's transaction. Of those with the same `after`, one runs at a time.

    Raises:
        Away: the database does not answer.
    """
    connection: Any = session.connection().connection.driver_connection
    configured = _deferring.configure_task(TASK, queue=job.queue, lock=after, queueing_lock=job.id, connection=connection)
    try:
        with connection.transaction():
            configured.defer(job=job.id)
    except AlreadyEnqueued:
        return  # it waits already
    except ConnectorException as error:
        raise Away("database", type(error.__cause__ or error).__name__) from error


def hand_over_forgotten(session: Session) -> list[str]:
    """Hand over again the jobs that wait or run by our table, and that Procrastinate does not have; their ids."""
    active = select(JobRecord).where(JobRecord.state.in_(ACTIVE))
    forgotten = session.scalars(active.where(text(f"NOT {HAS_ROW}").bindparams(task=TASK))).all()
    for job in forgotten:
        defer(session, job, None)
    return [job.id for job in forgotten]


def hand_over_again(session: Session, job_id: str, after: str | None) -> bool:
    """Hand over a job whose worker is dead; False if nothing is left to do for it."""
    job = session.scalar(select(JobRecord).where(JobRecord.id == job_id, JobRecord.state.in_(ACTIVE)))
    if job is not None:
        defer(session, job, after)
    return job is not None


def left_over(session: Session, seconds: float) -> list[int]:
    """Procrastinate's rows of jobs that ended a while ago: their worker could not say so."""
    found = text(
        "SELECT row.id FROM procrastinate_jobs AS row JOIN jobs ON jobs.id = row.args->>'job' WHERE row.task_name = :task "
        "AND row.status = 'doing' AND jobs.finished_at < :before"
    )
    return list(session.scalars(found, {"task": TASK, "before": now() - timedelta(seconds=seconds)}))
