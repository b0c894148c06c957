"""The states of a job, and with them those of its plan and profile."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from models import JobKind, JobRecord, JobState, ModelRecord, PlanRecord, PlanState, ProfileRecord, ProfileState, SampleRecord
from service import queue
from service.database import Database
from service.problems import NotFound, ProblemDocument
from tests.service.postgres import Postgres, needs_postgres, new_database, postgres

PROBLEM: ProblemDocument = NotFound("thing", "1", "Make one.").document


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=needs_postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'memfit.db'}"
    else:
        with new_database(request.getfixturevalue("server")) as url:
            yield url


@pytest.fixture
def session(url: str) -> Iterator[Session]:
    database = Database(url)
    database.migrate()
    with database.transaction() as session:
        session.add_all([ModelRecord(digest="m", bytes=1, summary_json="{}"), SampleRecord(digest="s", bytes=1, summary_json="{}")])
        session.flush()
        yield session
    database.close()


def plan_job(session: Session, loss: str = "mse") -> tuple[JobRecord, PlanRecord, ProfileRecord]:
    """A queued job that is to measure a profile and carry a plan."""
    profile = ProfileRecord(model_digest="m", sample_digest="s", loss=loss, batch_norm="frozen", batch_size=8, state=ProfileState.QUEUED)
    session.add(profile)
    session.flush()
    plan = PlanRecord(profile_id=profile.id, state=PlanState.QUEUED, request_json="{}")
    session.add(plan)
    session.flush()
    job = queue.add(session, JobKind.PLAN, plan.id)
    plan.job_id = profile.job_id = job.id
    session.flush()
    return job, plan, profile


def states(session: Session, *records: JobRecord | PlanRecord | ProfileRecord) -> tuple[str, ...]:
    session.flush()
    for record in records:
        session.refresh(record)
    return tuple(record.state for record in records)


def test_jobs_are_claimed_in_the_order_they_came(session: Session) -> None:
    first, second = plan_job(session)[0], plan_job(session, "cross_entropy")[0]
    assert queue.claim(session) is first
    assert queue.claim(session) is second
    assert queue.claim(session) is None
    assert (first.state, first.attempt) == (JobState.RUNNING, 1)


def test_a_plan_and_its_profile_show_the_stage_of_their_job(session: Session) -> None:
    job, plan, profile = plan_job(session)
    queue.claim(session)
    queue.advance(session, job.id, job.attempt, "profiling", 0.5, "measuring")
    assert states(session, plan, profile) == ("profiling", "profiling")
    queue.advance(session, job.id, job.attempt, "patching", 0.0, "")
    assert states(session, job, plan, profile) == ("running", "patching", "profiling")


def test_a_failure_is_that_of_the_plan_and_of_an_unmeasured_profile(session: Session) -> None:
    job, plan, profile = plan_job(session)
    queue.claim(session)
    queue.fail(session, job.id, job.attempt, PROBLEM)
    assert states(session, job, plan, profile) == ("failed", "failed", "failed")
    assert job.problem_json == plan.problem_json == profile.problem_json is not None


def test_a_measured_profile_outlives_the_failure_of_its_job(session: Session) -> None:
    job, plan, profile = plan_job(session)
    queue.claim(session)
    profile.state = ProfileState.READY
    queue.fail(session, job.id, job.attempt, PROBLEM)
    assert states(session, plan, profile) == ("failed", "ready")


@pytest.mark.parametrize("running", [False, True])
def test_waiting_and_running_jobs_can_be_cancelled(session: Session, running: bool) -> None:
    job, plan, profile = plan_job(session)
    if running:
        queue.claim(session)
    assert queue.cancel(session, job.id) is job
    assert states(session, job, plan, profile) == ("cancelled", "cancelled", "cancelled")
    assert queue.claim(session) is None


@pytest.mark.parametrize("end", ["succeed", "fail", "cancel"])
def test_nothing_leaves_a_finished_state(session: Session, end: str) -> None:
    job, _, _ = plan_job(session)
    queue.claim(session)
    if end == "succeed":
        queue.succeed(session, job.id, job.attempt)
    elif end == "fail":
        queue.fail(session, job.id, job.attempt, PROBLEM)
    else:
        queue.cancel(session, job.id)
    before = states(session, job)
    assert JobState(job.state).finished
    assert queue.advance(session, job.id, job.attempt, "solving", 0, "") is None
    assert (queue.succeed(session, job.id, job.attempt) is None) == (end != "succeed"), "said twice, it is the same"
    assert queue.fail(session, job.id, job.attempt, PROBLEM) is None
    assert queue.cancel(session, job.id) is None
    assert queue.put_back(session, job.id, job.attempt) is None
    assert queue.take(session, job.id) is None
    assert states(session, job) == before


def test_a_job_put_back_in_good_order_was_not_interrupted(session: Session) -> None:
    job, plan, _ = plan_job(session)
    queue.claim(session)
    queue.advance(session, job.id, job.attempt, "verifying", 0.5, "")
    queue.put_back(session, job.id, job.attempt)
    assert states(session, job, plan) == ("queued", "queued")
    assert (job.stage, job.fraction, job.attempt, job.interruptions) == ("queued", 0.0, 1, 0)


def test_what_an_earlier_attempt_finds_is_dropped(session: Session) -> None:
    """A worker that was taken for dead, and is not, changes nothing any more."""
    job, plan, _ = plan_job(session)
    first = queue.take(session, job.id)
    assert first is not None and first.attempt == 1
    queue.advance(session, job.id, 1, "patching", 0.5, "")
    second = queue.take(session, job.id)
    assert second is job and (job.attempt, job.interruptions) == (2, 1)
    assert states(session, job, plan) == ("running", "queued")
    assert not queue.counts(session, job.id, 1) and queue.counts(session, job.id, 2)
    assert queue.advance(session, job.id, 1, "verifying", 0.9, "") is None
    assert queue.succeed(session, job.id, 1) is None
    assert queue.fail(session, job.id, 1, PROBLEM) is None
    assert queue.put_back(session, job.id, 1) is None
    assert states(session, job) == ("running",)
    assert queue.succeed(session, job.id, 2) is job
    assert queue.take(session, job.id) is None


def test_an_interrupted_job_starts_again_but_not_for_ever(session: Session) -> None:
    job, plan, _ = plan_job(session)
    for _ in range(queue.MAX_INTERRUPTIONS):
        assert states(session, job) == ("queued",)
        assert queue.claim(session) is job
        queue.put_back_interrupted(session)
    assert states(session, job, plan) == ("failed", "failed")
    assert "10 times" in str(job.problem_json)
