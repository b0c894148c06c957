"""Jobs: how far they are, as an answer and as a stream of events, and how to cancel one."""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any

from fastapi import Depends, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, PlainTextResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from models import JobKind, JobRecord, JobState
from service import queue
from service.access import CallerDep, IdPath, calls, check_held
from service.context import Context, ContextDep
from service.documents import PROBLEM
from service.keys import Caller
from service.problems import NotFound, Problem
from service.rendered import json_answer

# ---- schemas


class JobAnswer(BaseModel):
    """A job, and how far it is."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(examples=["7a5ee492-b500-4199-b154-762c80bbfb7f"])
    kind: JobKind
    state: JobState
    stage: str = Field(description="queued, profiling, solving, patching or verifying.", examples=["profiling"])
    attempt: int = Field(description="Which attempt to run it is, or was, the last; 0: it was not begun.")
    fraction: float = Field(description="Share of the stage that is done, 0 to 1.", examples=[0.3])
    message: str = Field(examples=["spectra of the activations"])
    plan: str | None = Field(description="The plan it works for.")
    profile: str | None = Field(description="The profile it measures, of a job that does only that.")
    problem: dict[str, Any] | None = Field(description="Why it failed, as a problem document.")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class JobFinished(Problem):
    """A job that has finished cannot be cancelled."""

    kind, title, status = "job-finished", "The job has finished", 409

    def __init__(self, job: JobRecord) -> None:
        super().__init__(f"job {job.id!r} has {job.state} already; there is nothing left to cancel.", job=job.id, state=job.state)


# ---- queries

ONE = select(JobRecord).where(JobRecord.id == bindparam("id"))  # written once: that takes as long as to ask it


def find_job(session: Session, id: str) -> JobRecord:
    """
    Raises:
        NotFound: there is none.
    """
    record = session.scalar(ONE, {"id": id})
    if record is None:
        raise NotFound("job", id, "The answers of POST /v1/plans and POST /v1/profiles name theirs.")
    return record


def job_answer(record: JobRecord) -> JobAnswer:
    return JobAnswer(
        id=record.id,
        kind=JobKind(record.kind),
        state=JobState(record.state),
        stage=record.stage,
        attempt=record.attempt,
        fraction=record.fraction,
        message=record.message,
        plan=record.subject_id if record.kind == JobKind.PLAN else None,
        profile=record.subject_id if record.kind == JobKind.PROFILE else None,
        problem=PROBLEM.validate_json(record.problem_json).as_json() if record.problem_json is not None else None,
        created_at=record.created_at,
        started_at=record.started_at,
        finished_at=record.finished_at,
    )


# ---- routes

router = calls("/v1/jobs", "jobs")


@router.get("/{id}", response_model=JobAnswer)
def get_job(id: IdPath, caller: CallerDep, context: ContextDep) -> Response:
    """How far a job is."""
    return json_answer(_job_now(id, caller, context))


def _job_now(id: str, caller: Caller, context: Context) -> JobAnswer:
    with context.database.reading() as session:
        check_held(session, caller, "job", id)
        return job_answer(find_job(session, id))


@router.delete("/{id}")
def cancel_job(id: IdPath, caller: CallerDep, context: ContextDep) -> JobAnswer:
    """Cancel a job that waits or runs, and with it its plan. To cancel it again changes nothing."""
    with context.database.transaction() as session:
        check_held(session, caller, "job", id)
        job = queue.cancel(session, id) or find_job(session, id)
    if job.state != JobState.CANCELLED:
        raise JobFinished(job)
    return job_answer(job)


@router.get("/{id}/logs", response_class=PlainTextResponse, operation_id="get_job_log")
def get_job_log(id: IdPath, caller: CallerDep, context: ContextDep) -> Response:
    """What the processes of a job printed, so far."""
    with context.database.reading() as session:
        check_held(session, caller, "job", id)
        find_job(session, id)
    log = context.store.log(id)
    if log.exists():
        return FileResponse(log, media_type="text/plain; charset=utf-8")
    return PlainTextResponse(context.store.shared_log(id))


def _existing(id: IdPath, caller: CallerDep, context: ContextDep) -> str:
    """The id of a job, found before a stream begins: from then on there is no other status to answer with."""
    return _job_now(id, caller, context).id


@router.get("/{id}/events", response_class=EventSourceResponse)
async def job_events(id: Annotated[str, Depends(_existing)], caller: CallerDep, context: ContextDep) -> AsyncIterator[ServerSentEvent]:
    """The job now, then every change as it comes: events `progress`, and at the end one `end`. The data of each is the job."""
    with context.hub.listening(id) as listener:  # first, so that nothing falls between the state read and the events heard
        answer = await run_in_threadpool(_job_now, id, caller, context)
        while not answer.state.finished:
            yield ServerSentEvent(event="progress", data=answer)
            record = await listener.events.get()
            if record is None:  # the server stops; the client may ask again
                return
            answer = job_answer(record)
        yield ServerSentEvent(event="end", data=answer)
