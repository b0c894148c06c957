"""Profiles: what was measured of a model on a sample, once for all budgets."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import Query, Response, status
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from models import JobKind, JobRecord, JobState, ProfileRecord, ProfileState
from planner.profile import Profile
from planner.request import ProfileSettings
from service import queue
from service.access import CallerDep, IdPath, calls, check_held, check_jobs, hold
from service.context import Context, ContextDep
from service.documents import MODEL_SUMMARY, PROBLEM, SAMPLE_SUMMARY
from service.fit import settle
from service.frontiers import FrontierAnswer, FrontierPoint
from service.job_run import settings_of
from service.jobs import find_job
from service.keys import Caller
from service.plans.answers import Footprint
from service.plans.requests import DIGEST_EXAMPLE, FrontierQuery, SettingsBody
from service.problems import NotFound, Problem
from service.rendered import json_answer
from service.store import Store
from service.stored import Outdated, read_profile
from service.uploads import find_model, find_sample


class NotReady(Problem):
    """The profile was not measured yet."""

    kind, title, status = "profile-not-ready", "The profile is not measured", 409

    def __init__(self, id: str, state: str) -> None:
        super().__init__(f"profile {id!r} is {state}. Wait for its job, or ask for it again with POST /v1/profiles.", id=id, state=state)


# ---- schemas


class ProfileBody(SettingsBody):
    """A profile to measure."""

    model: str = Field(description="A stored model's id.", examples=[DIGEST_EXAMPLE])
    sample: str = Field(description="A stored sample's id.", examples=[DIGEST_EXAMPLE])


class ProfileAnswer(BaseModel):
    """A profile: what it is of, and what was measured, once ready."""

    model_config = ConfigDict(frozen=True)

    id: str
    state: ProfileState
    model: str
    sample: str
    settings: ProfileSettings
    job: str | None = Field(description="The job that measures it, or did.")
    measured: Profile | None = Field(
        description="Operations, activations with their options, gradient energies, and the plain step's footprint."
    )
    timeline: tuple[Footprint, ...] | None = Field(
        description="Of a step that trains everything and keeps it whole, as memfit's operations hold it, at every moment."
    )
    problem: dict[str, Any] | None = Field(description="Why it failed, as a problem document.")
    created_at: datetime


# ---- queries

ONE = select(ProfileRecord).where(ProfileRecord.id == bindparam("id"))  # written once, as in service.jobs


def find_profile(session: Session, id: str) -> ProfileRecord:
    """
    Raises:
        NotFound: there is none.
    """
    record = session.scalar(ONE, {"id": id})
    if record is None:
        raise NotFound("profile", id, "Measure one with POST /v1/profiles; its answer has the id.")
    return record


def profile_for(session: Session, model_digest: str, sample_digest: str, settings: ProfileSettings) -> ProfileRecord:
    """The one profile of a model, a sample and settled settings: there already, or new and not yet anyone's job."""
    record = session.scalar(
        select(ProfileRecord).where(
            ProfileRecord.model_digest == model_digest,
            ProfileRecord.sample_digest == sample_digest,
            ProfileRecord.loss == settings.loss,
            ProfileRecord.batch_norm == settings.batch_norm,
            ProfileRecord.batch_size == settings.batch_size,
        )
    )
    if record is None:
        record = ProfileRecord(
            model_digest=model_digest,
            sample_digest=sample_digest,
            loss=settings.loss,
            batch_norm=settings.batch_norm,
            batch_size=settings.batch_size,
            state=ProfileState.QUEUED,
        )
        session.add(record)
        session.flush()
    return record


def needs_job(session: Session, record: ProfileRecord) -> bool:
    """Whether the profile is not measured, and no job is about to measure it."""
    owner = find_job(session, record.job_id) if record.job_id is not None else None
    return record.state != ProfileState.READY and (owner is None or JobState(owner.state).finished)


def _is_outdated(store: Store, record: ProfileRecord) -> bool:
    """Whether an earlier memfit measured it, so that it has to be measured anew."""
    try:
        return record.state == ProfileState.READY and read_profile(store, record) is None
    except Outdated:
        return True


def give_to(record: ProfileRecord, job: JobRecord) -> None:
    """Let a job measure the profile."""
    record.state, record.job_id, record.problem_json = ProfileState.QUEUED, job.id, None


# ---- routes

router = calls("/v1/profiles", "profiles")


@router.post("", status_code=status.HTTP_202_ACCEPTED)
def request_profile(body: ProfileBody, response: Response, caller: CallerDep, context: ContextDep) -> ProfileAnswer:
    """Measure a stored model on a stored sample. Asked for again, it is the same profile; one that failed is measured anew."""
    with context.database.transaction() as session:
        check_held(session, caller, "model", body.model)
        check_held(session, caller, "sample", body.sample)
        model, sample = find_model(session, body.model), find_sample(session, body.sample)
        settings = settle(MODEL_SUMMARY.validate_json(model.summary_json), SAMPLE_SUMMARY.validate_json(sample.summary_json), body.settings)
        record = profile_for(session, model.digest, sample.digest, settings)
        hold(session, caller, "profile", record.id)
        if needs_job(session, record) or _is_outdated(context.store, record):
            check_jobs(session, caller)
            give_to(record, job := queue.add(session, JobKind.PROFILE, record.id, context.settings.queue, after=record.id))
            hold(session, caller, "job", job.id)
    response.headers["location"] = f"/v1/profiles/{record.id}"
    return _profile_answer(record, None)


@router.get("/{id}", response_model=ProfileAnswer)
def get_profile(
    id: IdPath,
    caller: CallerDep,
    context: ContextDep,
    measured: Annotated[bool, Query(description="Whether to answer with all that was measured: megabytes, of a large model.")] = True,
) -> Response:
    """A profile, with all that was measured."""
    with context.database.reading() as session:
        check_held(session, caller, "profile", id)
        record = find_profile(session, id)

    def render() -> bytes:
        return _profile_answer(record, read_profile(context.store, record) if measured else None).model_dump_json().encode()

    ready = measured and record.state == ProfileState.READY  # the same until it is measured anew
    answer = context.rendered.get(f"{id} {record.content_digest}", render) if ready else render()
    return json_answer(answer)


@router.get("/{id}/frontier")
async def get_frontier(id: IdPath, query: Annotated[FrontierQuery, Query()], caller: CallerDep, context: ContextDep) -> FrontierAnswer:
    """What is to be had at every budget, from the least that anything fits to the plain step's peak. Predicted, not measured; it takes
    some seconds.
    """
    return await context.solving.run(_frontier, id, query, caller, context)


def _frontier(id: str, query: FrontierQuery, caller: Caller, context: Context) -> FrontierAnswer:
    from planner.frontier import frontier  # as in service.plans.queries

    with context.database.reading() as session:
        check_held(session, caller, "profile", id)
        record = find_profile(session, id)
    if record.content_digest is None:
        raise NotReady(id, record.state)
    with context.programs.of(record, query.plan_request) as programs:
        return FrontierAnswer(points=tuple(map(FrontierPoint.of, frontier(programs, query.points))))


def _profile_answer(record: ProfileRecord, measured: Profile | None) -> ProfileAnswer:
    return ProfileAnswer(
        id=record.id,
        state=ProfileState(record.state),
        model=record.model_digest,
        sample=record.sample_digest,
        settings=settings_of(record),
        job=record.job_id,
        measured=measured,
        timeline=_timeline(measured) if measured is not None else None,
        problem=PROBLEM.validate_json(record.problem_json).as_json() if record.problem_json is not None else None,
        created_at=record.created_at,
    )


def _timeline(measured: Profile) -> tuple[Footprint, ...]:
    from planner.footprint import plain_timeline  # with scipy, as in service.plans.queries

    return tuple(map(Footprint.of, plain_timeline(measured)))
