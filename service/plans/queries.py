"""How a plan begins: everything it is asked for with is checked, then kept, and a job carries it on."""

from dataclasses import dataclass
from typing import Generic

from sqlalchemy.orm import Session

from models import JobKind, JobRecord, PlanRecord, PlanState, ProfileRecord, ProfileState
from models.base import new_id
from planner.errors import InfeasibleBudget
from planner.request import PlanRequest
from service import queue
from service.access import Thing, check_file, check_held, check_jobs, hold
from service.context import Context
from service.documents import MODEL_SUMMARY, PLAN, PLAN_REQUEST, SAMPLE_SUMMARY
from service.fit import check_trainable, settle
from service.idempotency import id_of_request
from service.job_run import mark_infeasible
from service.keys import Caller
from service.plans.requests import PlanBody
from service.problems import InvalidRequest, NotFound
from service.profiles import find_profile, give_to, needs_job, profile_for
from service.store import Draft
from service.stored import Outdated
from service.summary import ModelSummary, SampleSummary
from service.taking_in import Summary, Upload, examine_model, examine_sample, keep_files, keep_model, keep_sample
from service.uploads import find_model, find_sample


@dataclass(frozen=True)
class _Given(Generic[Summary]):
    """A model or a sample that a plan is asked for with. `upload`: None for a stored one."""

    digest: str
    summary: Summary
    upload: Upload[Summary] | None


def find_plan(session: Session, id: str) -> PlanRecord:
    """
    Raises:
        NotFound: there is none.
    """
    record = session.get(PlanRecord, id)
    if record is None:
        raise NotFound("plan", id, "Ask for one with POST /v1/plans; its answer has the id.")
    return record


def make_plan(caller: Caller, context: Context, body: PlanBody, drafts: dict[str, Draft]) -> str:
    """Check all that a plan is asked for with, keep it, and begin; the plan's id. Nothing is kept if anything is wrong.

    With a stored profile the choice is made here and now; a job patches and measures.
    """
    request = body.plan_request  # before any file is opened
    with context.database.reading() as session:
        if (id := id_of_request()) is not None and session.get(PlanRecord, id) is not None:
            return id
    if body.profile is not None:
        if drafts:
            raise InvalidRequest("a plan for a stored profile needs no files. Leave out the profile, or the parts model and sample.")
        with context.database.reading() as session:
            check_held(session, caller, "profile", body.profile)
            profile = find_profile(session, body.profile)
            check_trainable(MODEL_SUMMARY.validate_json(find_model(session, profile.model_digest).summary_json), request)
    else:
        model = _given_model(caller, context, body.model, drafts.get("model"))
        sample = _given_sample(caller, context, body.sample, drafts.get("sample"))
        settings = settle(model.summary, sample.summary, body.settings)
        check_trainable(model.summary, request)
        keep_files(context, model.upload, sample.upload)
        with context.database.transaction() as session:
            if model.upload is not None:
                check_file(session, caller, "model", model.digest, model.upload.draft.new_bytes)
                keep_model(context, session, model.upload)
                hold(session, caller, "model", model.digest)
            if sample.upload is not None:
                check_file(session, caller, "sample", sample.digest, sample.upload.draft.new_bytes)
                keep_sample(context, session, sample.upload)
            profile = profile_for(session, model.digest, sample.digest, settings)
            kinds: tuple[tuple[Thing, str], ...] = (("model", model.digest), ("sample", sample.digest), ("profile", profile.id))
            for kind, id in kinds:
                hold(session, caller, kind, id)
    with context.database.reading() as session:
        check_jobs(session, caller)  # before anything is solved
    if profile.state == ProfileState.READY:
        try:
            return _solve_now(caller, context, profile, request)
        except Outdated:
            pass  # the job measures it anew
    with context.database.transaction() as session:
        plan = _add(session, caller, profile, request)
        job = _begin(session, caller, context, plan, after=profile.id)
        owned = find_profile(session, profile.id)
        if needs_job(session, owned):
            give_to(owned, job)
    return plan.id


def _solve_now(caller: Caller, context: Context, profile: ProfileRecord, request: PlanRequest) -> str:
    from planner.solver import best_plan  # the solver takes 40 MB, which a server that solves nothing yet does without

    try:
        with context.programs.of(profile, request) as programs:
            solved = best_plan(programs, search_seconds=0)  # someone waits; the job searches on where that leaves a gap
    except InfeasibleBudget as error:
        with context.database.transaction() as session:
            plan = _add(session, caller, profile, request)
            mark_infeasible(plan, error)
        return plan.id
    with context.database.transaction() as session:
        plan = _add(session, caller, profile, request)
        plan.plan_json, plan.budget_bytes = PLAN.dump_json(solved).decode(), solved.budget_bytes
        _begin(session, caller, context, plan)
    return plan.id


def _add(session: Session, caller: Caller, profile: ProfileRecord, request: PlanRequest) -> PlanRecord:
    plan = PlanRecord(
        id=id_of_request() or new_id(),
        profile_id=profile.id,
        state=PlanState.QUEUED,
        request_json=PLAN_REQUEST.dump_json(request).decode(),
        budget_bytes=request.budget.amount_bytes if request.budget is not None else None,
    )
    session.add(plan)
    session.flush()
    hold(session, caller, "plan", plan.id)
    return plan


def _begin(session: Session, caller: Caller, context: Context, plan: PlanRecord, after: str | None = None) -> JobRecord:
    check_jobs(session, caller)
    job = queue.add(session, JobKind.PLAN, plan.id, context.settings.queue, after)
    plan.job_id = job.id
    hold(session, caller, "job", job.id)
    return job


def _given_model(caller: Caller, context: Context, id: str | None, draft: Draft | None) -> _Given[ModelSummary]:
    if draft is not None and id is None:
        upload = examine_model(caller, context, draft)
        return _Given(draft.digest, upload.summary, upload)
    if id is None or draft is not None:
        raise _not_one("model")
    with context.database.reading() as session:
        check_held(session, caller, "model", id)
        return _Given(id, MODEL_SUMMARY.validate_json(find_model(session, id).summary_json), None)


def _given_sample(caller: Caller, context: Context, id: str | None, draft: Draft | None) -> _Given[SampleSummary]:
    if draft is not None and id is None:
        upload = examine_sample(caller, context, draft)
        return _Given(draft.digest, upload.summary, upload)
    if id is None or draft is not None:
        raise _not_one("sample")
    with context.database.reading() as session:
        check_held(session, caller, "sample", id)
        return _Given(id, SAMPLE_SUMMARY.validate_json(find_sample(session, id).summary_json), None)


def _not_one(what: str) -> InvalidRequest:
    return InvalidRequest(
        f"a plan needs one {what}: a stored one's id as the member {what!r}, or a file as the part {what!r} of a multipart body."
    )
