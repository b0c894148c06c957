"""The queue of jobs: every change of a job's state, with that of the plan or profile it works for, in one transaction.

The functions take the caller's session and leave the commit to it. Who runs a job next, the table itself says on SQLite (`claim`);
on Postgres, Procrastinate does (`service.cluster`), and a job is handed over to it in the transaction that makes it.
"""

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from models import JobKind, JobQueue, JobRecord, JobState, PlanRecord, PlanState, ProfileRecord, ProfileState
from models.base import now
from service.database import mark_changed
from service.documents import PROBLEM
from service.problems import INTERNAL, ProblemDocument
from service.tracing import current_trace

MAX_INTERRUPTIONS = 10
UNMEASURED = (ProfileState.QUEUED, ProfileState.PROFILING)
INTERRUPTED = ProblemDocument(
    INTERNAL,
    "The job was interrupted too often",
    500,
    f"workers died {MAX_INTERRUPTIONS} times while they ran this job, so it is not started again: it may be what kills them. "
    "Give them more memory, or use a smaller batch_size, and ask anew.",
    {"interruptions": MAX_INTERRUPTIONS},
)


def add(session: Session, kind: JobKind, subject_id: str, queue: JobQueue = JobQueue.CPU, after: str | None = None) -> JobRecord:
    """A new job at the end of the queue. Of those with the same `after`, Postgres's workers run one at a time."""
    job = JobRecord(kind=kind, subject_id=subject_id, state=JobState.QUEUED, queue=queue, trace=current_trace())
    session.add(job)
    session.flush()
    _hand_over(session, job, after)
    mark_changed(session, job)
    return job


def claim(session: Session) -> JobRecord | None:
    """The job that waited longest, now running; None if none waits."""
    job = session.scalar(select(JobRecord).where(JobRecord.state == JobState.QUEUED).order_by(JobRecord.number).limit(1))
    return _begin(session, job) if job is not None else None


def take(session: Session, job_id: str) -> JobRecord | None:
    """A given job, now running; None if it has ended. If it runs already, its worker is dead, or will be told that it counts no more."""
    job = _in_state(session, job_id, None, JobState.QUEUED, JobState.RUNNING)
    if job is not None and job.state == JobState.RUNNING:
        _interrupted(session, job)
        if job.state != JobState.QUEUED:
            return None
    return _begin(session, job) if job is not None else None


def advance(session: Session, job_id: str, attempt: int, stage: str, fraction: float, message: str) -> JobRecord | None:
    """Note how far an attempt is; None if it counts no more, because the job was cancelled or taken over."""
    job = _in_state(session, job_id, attempt, JobState.RUNNING)
    if job is not None:
        job.stage, job.fraction, job.message = stage, fraction, message
        _mark(session, job, PlanState(stage), ProfileState.PROFILING if stage == PlanState.PROFILING else None)
        mark_changed(session, job)
    return job


def succeed(session: Session, job_id: str, attempt: int) -> JobRecord | None:
    """An attempt has done the job's work; the caller saves the result. None if it counts no more.

    Said twice, because the answer to the first was lost, it is the same.
    """
    job = _in_state(session, job_id, attempt, JobState.RUNNING, JobState.SUCCEEDED)
    if job is not None:
        job.state, job.fraction, job.message, job.finished_at = JobState.SUCCEEDED, 1.0, "done", now()
        mark_changed(session, job)
    return job


def fail(session: Session, job_id: str, attempt: int, problem: ProblemDocument) -> JobRecord | None:
    """An attempt failed, and with it the plan, and the profile if that was not measured. None if it counts no more."""
    job = _in_state(session, job_id, attempt, JobState.RUNNING)
    if job is not None:
        job.state, job.message, job.finished_at = JobState.FAILED, problem.title, now()
        job.problem_json = PROBLEM.dump_json(problem).decode()
        _mark(session, job, PlanState.FAILED, ProfileState.FAILED, job.problem_json)
        mark_changed(session, job)
    return job


def cancel(session: Session, job_id: str) -> JobRecord | None:
    """A waiting or running job is wanted no more; None if it has finished."""
    job = _in_state(session, job_id, None, JobState.QUEUED, JobState.RUNNING)
    if job is not None:
        job.state, job.message, job.finished_at = JobState.CANCELLED, "cancelled", now()
        _mark(session, job, PlanState.CANCELLED, ProfileState.CANCELLED)
        mark_changed(session, job)
    return job


def counts(session: Session, job_id: str, attempt: int) -> bool:
    """Whether an attempt still counts; if so, until the transaction ends."""
    return _in_state(session, job_id, attempt, JobState.RUNNING) is not None


def put_back(session: Session, job_id: str, attempt: int) -> JobRecord | None:
    """A job whose worker is stopping in good order waits again."""
    job = _in_state(session, job_id, attempt, JobState.RUNNING)
    if job is not None:
        _queue_again(session, job)
        _hand_over(session, job)
    return job


def put_back_interrupted(session: Session) -> None:
    """Jobs that ran when their server died wait again, unless that happened too often. Only the one server of a database may ask."""
    for job in session.scalars(select(JobRecord).where(JobRecord.state == JobState.RUNNING)):
        _interrupted(session, job)


def _begin(session: Session, job: JobRecord) -> JobRecord:
    job.state, job.started_at, job.attempt = JobState.RUNNING, now(), job.attempt + 1
    session.flush()
    mark_changed(session, job)
    return job


def _interrupted(session: Session, job: JobRecord) -> None:
    job.interruptions += 1
    if job.interruptions < MAX_INTERRUPTIONS:
        _queue_again(session, job)
    else:
        fail(session, job.id, job.attempt, INTERRUPTED)


def _queue_again(session: Session, job: JobRecord) -> None:
    job.state, job.stage, job.fraction, job.message, job.started_at = JobState.QUEUED, "queued", 0.0, "waiting to start again", None
    _mark(session, job, PlanState.QUEUED, ProfileState.QUEUED)
    mark_changed(session, job)


def _hand_over(session: Session, job: JobRecord, after: str | None = None) -> None:
    if session.get_bind().dialect.name == "postgresql":
        from service.cluster import defer  # without Postgres the service does without Procrastinate

        defer(session, job, after)


def _in_state(session: Session, job_id: str, attempt: int | None, *states: JobState) -> JobRecord | None:
    """The job, if it is in one of the states and the attempt is its last; locked until the transaction ends, so that it stays so."""
    found = select(JobRecord).where(JobRecord.id == job_id, JobRecord.state.in_(states)).with_for_update()
    if attempt is not None:
        found = found.where(JobRecord.attempt == attempt)
    return session.scalar(found.execution_options(populate_existing=True))


def _mark(session: Session, job: JobRecord, plan: PlanState, profile: ProfileState | None, problem_json: str | None = None) -> None:
    """Set the state of the job's plan, and of the profile it is to measure until that is ready."""
    if job.kind == JobKind.PLAN:
        session.execute(update(PlanRecord).where(PlanRecord.job_id == job.id).values(state=plan, problem_json=problem_json))
    if profile is not None:
        unmeasured = (ProfileRecord.job_id == job.id) & ProfileRecord.state.in_(UNMEASURED)
        session.execute(update(ProfileRecord).where(unmeasured).values(state=profile, problem_json=problem_json))
