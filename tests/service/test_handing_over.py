"""Jobs and Procrastinate's rows of them: made together, and mended where a killed process left one without the other."""

from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from models import JobKind, JobRecord, JobState
from models.base import now
from service import queue
from service.cluster import hand_over_again, hand_over_forgotten, left_over
from service.database import Database
from tests.service.postgres import Postgres, needs_postgres, new_database, postgres

pytestmark = needs_postgres


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


@pytest.fixture
def database(server: Postgres) -> Iterator[Database]:
    with new_database(server) as url:
        database = Database(url)
        database.migrate()
        yield database
        database.close()


def rows(session: Session) -> list[tuple[str, str]]:
    """Procrastinate's rows: of which job, in which state."""
    return [tuple(row) for row in session.execute(text("SELECT args->>'job', status::text FROM procrastinate_jobs ORDER BY id"))]


def add(database: Database) -> str:
    with database.transaction() as session:
        return queue.add(session, JobKind.PLAN, "p").id


def set_rows(database: Database, status: str) -> None:
    with database.transaction() as session:
        session.execute(text(f"UPDATE procrastinate_jobs SET status = '{status}'"))


def test_a_job_is_handed_over_in_the_transaction_that_makes_it(database: Database) -> None:
    with suppress(RuntimeError), database.transaction() as session:
        queue.add(session, JobKind.PLAN, "p")
        assert len(rows(session)) == 1
        raise RuntimeError("the request fails")
    with database.reading() as session:
        assert rows(session) == [] and session.scalars(select(JobRecord)).all() == []
    job = add(database)
    with database.reading() as session:
        assert rows(session) == [(job, "todo")]


def test_what_was_lost_on_the_way_is_handed_over_again_once(database: Database) -> None:
    jobs = [add(database), add(database)]
    with database.transaction() as session:
        session.execute(text("DELETE FROM procrastinate_jobs"))
    with database.transaction() as session:
        assert sorted(hand_over_forgotten(session)) == sorted(jobs)
    with database.transaction() as session:
        assert hand_over_forgotten(session) == []
        assert sorted(rows(session)) == sorted((job, "todo") for job in jobs)
    set_rows(database, "doing")
    with database.transaction() as session:
        assert hand_over_forgotten(session) == [], "somebody runs it"
        for job in jobs:
            queue.cancel(session, job)
        session.execute(text("DELETE FROM procrastinate_jobs"))
    with database.transaction() as session:
        assert hand_over_forgotten(session) == [], "nothing is left to do"


def test_the_job_of_a_dead_worker_gets_a_row_of_its_own(database: Database) -> None:
    job = add(database)
    set_rows(database, "doing")
    with database.transaction() as session:
        assert hand_over_again(session, job, None)
        assert hand_over_again(session, job, None), "said twice, it is one row"
        assert rows(session) == [(job, "doing"), (job, "todo")]
        queue.cancel(session, job)
        assert not hand_over_again(session, job, None)


def test_rows_of_jobs_that_ended_are_left_over_after_a_while(database: Database) -> None:
    job = add(database)
    set_rows(database, "doing")
    with database.transaction() as session:
        taken = queue.take(session, job)
        assert taken is not None
        assert left_over(session, 30) == [], "it runs"
        queue.succeed(session, job, taken.attempt)
    with database.transaction() as session:
        assert left_over(session, 30) == [], "its worker is about to say so"
        record = session.scalar(select(JobRecord).where(JobRecord.id == job))
        assert record is not None and record.state == JobState.SUCCEEDED
        record.finished_at = now() - timedelta(minutes=1)
        session.flush()
        assert len(left_over(session, 30)) == 1
