"""The states of a job, and with them those of its plan and profile."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from models import JobKind, JobRecord, JobState, ModelRecord, PlanRecord, PlanState, ProfileRecord, ProfileState, SampleRecord
from service import queue
from service.database import Database
from service.problems import NotFound, ProblemDocument

PROBLEM: ProblemDocument = NotFound("thing", "1", "Make one.").document


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    database = Database(f"sqlite:///{tmp_path / 'memfit.db'}")
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
    assert (first.state, first.starts) == (JobState.RUNNING, 1)


def test_a_plan_and_its_profile_show_the_stage_of_their_job(session: Session) -> None:
    job, plan, profile = plan_job(session)
    queue.claim(session)
    queue.advance(session, job.id, "profiling", 0.5, "measuring")
    assert states(session, plan, profile) == ("profiling", "profiling")
    queue.advance(session, job.id, "patching", 0.0, "")
    assert states(session, job, plan, profile) == ("running", "patching", "profiling")


def test_a_failure_is_that_of_the_plan_and_of_an_unmeasured_profile(session: Session) -> None:
    job, plan, profile = plan_job(session)
    queue.claim(session)
    queue.fail(session, job.id, PROBLEM)
    assert states(session, job, plan, profile) == ("failed", "failed", "failed")
    assert job.problem_json == plan.problem_json == profile.problem_json is not None


def test_a_measured_profile_outlives_the_failure_of_its_job(session: Session) -> None:
    job, plan, profile = plan_job(session)
    queue.claim(session)
    profile.state = ProfileState.READY
    queue.fail(session, job.id, PROBLEM)
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
    {"succeed": queue.succeed, "fail": lambda s, id: queue.fail(s, id, PROBLEM), "cancel": queue.cancel}[end](session, job.id)
    before = states(session, job)
    assert JobState(job.state).finished
    assert queue.advance(session, job.id, "solving", 0, "") is None
    assert queue.succeed(session, job.id) is None
    assert queue.fail(session, job.id, PROBLEM) is None
    assert queue.cancel(session, job.id) is None
    assert queue.put_back(session, job.id) is None
    assert states(session, job) == before


def test_a_job_put_back_in_good_order_was_not_started(session: Session) -> None:
    job, plan, _ = plan_job(session)
    queue.claim(session)
    queue.advance(session, job.id, "verifying", 0.5, "")
    queue.put_back(session, job.id)
    assert states(session, job, plan) == ("queued", "queued")
    assert (job.stage, job.fraction, job.starts) == ("queued", 0.0, 0)


def test_an_interrupted_job_starts_again_but_not_for_ever(session: Session) -> None:
    job, plan, _ = plan_job(session)
    for _ in range(queue.MAX_STARTS):
        assert states(session, job) == ("queued",)
        assert queue.claim(session) is job
        queue.put_back_interrupted(session)
    assert states(session, job, plan) == ("failed", "failed")
    assert "3 times" in str(job.problem_json)
