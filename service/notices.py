"""Hears, in a process on a shared Postgres, of every job that any process wrote of; and holds the lock that says this process lives."""

import logging
from threading import Event, Thread

from sqlalchemy import func, select
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

from models import JobRecord
from models.base import new_id
from service.database import CHANNEL, POSTGRES, Database, psycopg_url

logger = logging.getLogger(__name__)
SECONDS_TO_NOTICE_A_STOP = 0.5
SECONDS_BETWEEN_TRIES = 0.5


class Notices:
    """A thread with a connection of its own.

    Attributes:
        server: the id of this process among the others of the database.
    """

    def __init__(self, database: Database) -> None:
        self._database, self._stopping, self.server = database, Event(), new_id()
        self._heard = Event()
        self._thread = Thread(target=self._run, name="notices", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._heard.wait(SECONDS_BETWEEN_TRIES)

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        import psycopg  # a program alone does without

        url = make_url(psycopg_url(self._database.engine.url.render_as_string(hide_password=False)))
        address = url.set(drivername="postgresql").render_as_string(hide_password=False)
        settings = {name: value for name, value in POSTGRES.items() if name != "options"}
        while not self._stopping.is_set():
            try:
                with psycopg.connect(address, autocommit=True, **settings) as connection:
                    connection.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", (self.server,))
                    connection.execute(f"LISTEN {CHANNEL}".encode())
                    self._heard.set()
                    self._tell_all()  # of what was missed while there was no connection
                    while not self._stopping.is_set():
                        for notice in connection.notifies(timeout=SECONDS_TO_NOTICE_A_STOP):
                            if notice.payload in self._topics():
                                self._tell(notice.payload)
                        connection.execute("SELECT 1")
            except Exception as error:  # whatever a driver raises: the database is away, and will be back
                logger.warning("the database tells nothing of jobs now: %s", error)
                self._stopping.wait(SECONDS_BETWEEN_TRIES)

    def _tell(self, job_id: str) -> None:
        with self._database.reading() as session:
            job = session.scalar(select(JobRecord).where(JobRecord.id == job_id))
        if job is not None:
            self._database.tell(job)

    def _tell_all(self) -> None:
        for job_id in self._topics():
            self._tell(job_id)

    def _topics(self) -> set[str]:
        """What somebody in this process waits to hear of."""
        return {id for topics in self._database.topics for id in topics()}


def lives(session: Session, server: str) -> bool:
    """Whether a process of the database is there: nobody else gets its lock."""
    return not session.scalar(select(func.pg_try_advisory_xact_lock(func.hashtextextended(server, 0))))
