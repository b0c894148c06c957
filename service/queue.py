"""The queue of jobs: every change of a job's state, with that of the plan or profile it works for, in one transaction.

The functions take the caller's session and leave the commit to it.
"""

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from models import JobKind, JobRecord, JobState, PlanRecord, PlanState, ProfileRecord, ProfileState
from models.base import now
from service.documents import PROBLEM
from service.problems import INTERNAL, ProblemDocument

MAX_STARTS = 3
UNMEASURED = (ProfileState.QUEUED, ProfileState.PROFILING)
INTERRUPTED = ProblemDocument(
    INTERNAL,
    "The job was interrupted too often",
    500,
    f"the service stopped {MAX_STARTS} times while this job ran, so it is not started again: it may be what stops it. "
    "Give the service more memory, or use a smaller batch_size, and ask anew.",
    {"starts": MAX_STARTS},
)


def add(session: Session, kind: JobKind, subject_id: str) -> JobRecord:
    """A new job at the end of the queue."""
    job = JobRecord(kind=kind, subject_id=subject_id, state=JobState.QUEUED)
    session.add(job)
    session.flush()
    return job


def claim(session: Session) -> JobRecord | None:
    """The job that waited longest, now running; None if none waits."""
    job = session.scalar(select(JobRecord).where(JobRecord.state == JobState.QUEUED).order_by(JobRecord.number).limit(1))
    if job is not None:
        job.state, job.started_at, job.starts = JobState.RUNNING, now(), job.starts + 1
    return job


def advance(session: Session, job_id: str, stage: str, fraction: float, message: str) -> JobRecord | None:
    """Note how far a running job is; None if it does not run any more, because somebody cancelled it."""
    job = _in_state(session, job_id, JobState.RUNNING)
    if job is not None:
        job.stage, job.fraction, job.message = stage, fraction, message
        _mark(session, job, PlanState(stage), ProfileState.PROFILING if stage == PlanState.PROFILING else None)
    return job


def succeed(session: Session, job_id: str) -> JobRecord | None:
    """A running job has done its work; the caller saves the result. None if it was cancelled meanwhile."""
    job = _in_state(session, job_id, JobState.RUNNING)
    if job is not None:
        job.state, job.fraction, job.message, job.finished_at = JobState.SUCCEEDED, 1.0, "done", now()
    return job


def fail(session: Session, job_id: str, problem: ProblemDocument) -> JobRecord | None:
    """A running job failed, and with it its plan, and its profile if that was not measured. None if it was cancelled meanwhile."""
    job = _in_state(session, job_id, JobState.RUNNING)
    if job is not None:
        job.state, job.message, job.finished_at = JobState.FAILED, problem.title, now()
        job.problem_json = PROBLEM.dump_json(problem).decode()
        _mark(session, job, PlanState.FAILED, ProfileState.FAILED, job.problem_json)
    return job


def cancel(session: Session, job_id: str) -> JobRecord | None:
    """A waiting or running job is wanted no more; None if it has finished."""
    job = _in_state(session, job_id, JobState.QUEUED, JobState.RUNNING)
    if job is not None:
        job.state, job.message, job.finished_at = JobState.CANCELLED, "cancelled", now()
        _mark(session, job, PlanState.CANCELLED, ProfileState.CANCELLED)
    return job


def put_back(session: Session, job_id: str) -> JobRecord | None:
    """A running job whose server is stopping in good order waits again, as if it had not been started."""
    job = _in_state(session, job_id, JobState.RUNNING)
    if job is not None:
        _queue_again(session, job)
        job.starts -= 1
    return job


def put_back_interrupted(session: Session) -> None:
    """Jobs that ran when their server died wait again, unless that happened too often. Only the one server of a database may ask."""
    for job in session.scalars(select(JobRecord).where(JobRecord.state == JobState.RUNNING)):
        if job.starts < MAX_STARTS:
            _queue_again(session, job)
        else:
            fail(session, job.id, INTERRUPTED)


def _queue_again(session: Session, job: JobRecord) -> None:
    job.state, job.stage, job.fraction, job.message, job.started_at = JobState.QUEUED, "queued", 0.0, "waiting to start again", None
    _mark(session, job, PlanState.QUEUED, ProfileState.QUEUED)


def _in_state(session: Session, job_id: str, *states: JobState) -> JobRecord | None:
    return session.scalar(select(JobRecord).where(JobRecord.id == job_id, JobRecord.state.in_(states)))


def _mark(session: Session, job: JobRecord, plan: PlanState, profile: ProfileState | None, problem_json: str | None = None) -> None:
    """Set the state of the job's plan, and of the profile it is to measure until that is ready."""
    if job.kind == JobKind.PLAN:
        session.execute(update(PlanRecord).where(PlanRecord.job_id == job.id).values(state=plan, problem_json=problem_json))
    if profile is not None:
        unmeasured = (ProfileRecord.job_id == job.id) & ProfileRecord.state.in_(UNMEASURED)
        session.execute(update(ProfileRecord).where(unmeasured).values(state=profile, problem_json=problem_json))
