"""The calls about plans, and the download of their checkpoints."""

from contextlib import ExitStack
from typing import Annotated, Any

from fastapi import Query, Request, Response, status
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse
from sqlalchemy import bindparam, select

from models import HoldingRecord, PlanRecord, PlanState
from service.access import CallerDep, IdPath, calls, check_held
from service.context import Context, ContextDep
from service.devices import with_budget
from service.documents import PROBLEM
from service.download import file_answer
from service.keys import Caller
from service.plans.answers import PlanAnswer, PlanList, PlanSummary, plan_content
from service.plans.queries import find_plan, make_plan
from service.plans.requests import DIGEST_EXAMPLE, PlanBody
from service.problems import InvalidRequest, Problem
from service.profiles import find_profile
from service.receive import Text, media_type, receive_json, receive_parts
from service.rendered import json_answer
from service.store import Draft
from service.stored import read_certificate, read_plan

router = calls("/v1/plans", "plans")
PLAN_SCHEMA = {"$ref": "#/components/schemas/PlanBody"}
STATE = select(PlanRecord.state).where(PlanRecord.id == bindparam("id"))  # written once, as in service.jobs
NEWEST = (
    select(PlanRecord.id, PlanRecord.state, PlanRecord.profile_id, PlanRecord.budget_bytes, PlanRecord.created_at)
    .order_by(PlanRecord.created_at.desc(), PlanRecord.id)
    .limit(bindparam("limit"))
)
NEWEST_HELD = NEWEST.where(
    PlanRecord.id.in_(select(HoldingRecord.subject_id).where(HoldingRecord.key_id == bindparam("key"), HoldingRecord.kind == "plan"))
)
FINISHED = (PlanState.READY, PlanState.INFEASIBLE, PlanState.FAILED, PlanState.CANCELLED)
FILE_SCHEMA = {"type": "string", "format": "binary"}
ASKED = {"budget": "40%", "optimizer": {"name": "sgd", "momentum": 0.9}, "loss": "cross_entropy"}
PLAN_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": PLAN_SCHEMA,
                "examples": {
                    "files": {
                        "summary": "Of a stored model and sample",
                        "value": ASKED | {"model": DIGEST_EXAMPLE, "sample": DIGEST_EXAMPLE},
                    },
                    "profile": {
                        "summary": "Of a stored profile, for a device",
                        "value": {"profile": "edfdfdf0-3059-4fe3-95c6-f681a258c009", "device": "raspberry-pi-4b-2gb"},
                    },
                },
            },
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["request"],
                    "properties": {"request": PLAN_SCHEMA, "model": FILE_SCHEMA, "sample": FILE_SCHEMA},
                },
                "example": {"request": ASKED, "model": "net.pt2", "sample": "sample.safetensors"},
                "encoding": {"request": {"contentType": "application/json"}},
            },
        },
    }
}


class CheckpointNotReady(Problem):
    """There is no checkpoint, or not yet."""

    kind, title, status = "checkpoint-not-ready", "There is no checkpoint", 409

    def __init__(self, plan: PlanRecord) -> None:
        coming = plan.state not in (PlanState.INFEASIBLE, PlanState.FAILED, PlanState.CANCELLED)
        then = (
            f"Follow /v1/jobs/{plan.job_id}/events and ask again." if coming else f"GET /v1/plans/{plan.id} says why; ask for another plan."
        )
        super().__init__(f"plan {plan.id!r} is {plan.state}: it has no checkpoint{' yet' * coming}. {then}", plan=plan.id, state=plan.state)


@router.post("", status_code=status.HTTP_202_ACCEPTED, openapi_extra=PLAN_BODY)
async def request_plan(request: Request, response: Response, caller: CallerDep, context: ContextDep) -> PlanAnswer:
    """Ask for a plan: JSON naming a stored profile, or a stored model and sample; or multipart with the parts request, model and sample.

    What is measured already is used. Then the answer has the choices; patching and measuring go on in the plan's job.
    """
    with ExitStack() as stack:
        drafts: dict[str, Draft] = {}
        if media_type(request) == "multipart/form-data":
            limit = context.settings.max_upload_bytes
            text, model, sample = (
                Text(),
                stack.enter_context(context.store.draft("models", limit)),
                stack.enter_context(context.store.draft("samples", limit)),
            )
            seen = await receive_parts(request, {"request": text, "model": model.write, "sample": sample.write})
            if "request" not in seen:
                raise InvalidRequest('the body has no part \'request\'. Send one such as {"budget": "64 MiB"}.')
            content = text.as_json()
            drafts = {name: draft for name, draft in (("model", model), ("sample", sample)) if name in seen}
        else:
            content = await receive_json(request)
        content = await run_in_threadpool(with_budget, context, caller, content)
        turns = context.opening if "model" in drafts else context.solving
        id = await turns.run(make_plan, caller, context, PlanBody.read(content), drafts)
    response.headers["location"] = f"/v1/plans/{id}"
    return await run_in_threadpool(_plan_answer, id, caller, context)


@router.get("", response_model=PlanList)
def list_plans(
    caller: CallerDep, context: ContextDep, limit: Annotated[int, Query(ge=1, le=1000, description="Most plans to list.")] = 50
) -> Response:
    """Plans, newest first."""
    with context.database.reading() as session:
        rows = session.execute(NEWEST if caller.sees_all else NEWEST_HELD, {"limit": limit, "key": caller.key_id})
        summaries = tuple(
            PlanSummary(id=id, state=PlanState(state), profile=profile, budget_bytes=budget_bytes, created_at=created_at)
            for id, state, profile, budget_bytes, created_at in rows
        )
    return json_answer(PlanList(plans=summaries))


@router.get("/{id}", response_model=PlanAnswer)
def get_plan(id: IdPath, caller: CallerDep, context: ContextDep) -> Response:
    """A plan, as far as it has come."""
    with context.database.reading() as session:
        check_held(session, caller, "plan", id)
        state = PlanState(session.scalar(STATE, {"id": id}) or PlanState.QUEUED)

    def render() -> bytes:
        return _plan_answer(id, caller, context).model_dump_json().encode()

    return json_answer(context.rendered.get(id, render) if state in FINISHED else render())


def _plan_answer(id: str, caller: Caller, context: Context) -> PlanAnswer:
    with context.database.reading() as session:
        check_held(session, caller, "plan", id)
        plan = find_plan(session, id)
        profile = find_profile(session, plan.profile_id)
    content: dict[str, Any] = plan_content(
        state=PlanState(plan.state),
        budget_bytes=plan.budget_bytes,
        plan=read_plan(plan),
        certificate=read_certificate(plan),
        problem=PROBLEM.validate_json(plan.problem_json) if plan.problem_json is not None else None,
    )
    return PlanAnswer(
        id=plan.id,
        model=profile.model_digest,
        sample=profile.sample_digest,
        profile=profile.id,
        job=plan.job_id,
        created_at=plan.created_at,
        **content,
    )


@router.head("/{id}/checkpoint", response_class=FileResponse, operation_id="describe_checkpoint")
@router.get("/{id}/checkpoint", response_class=FileResponse, operation_id="get_checkpoint")
def get_checkpoint(id: IdPath, request: Request, caller: CallerDep, context: ContextDep) -> Response:
    """The patched checkpoint, for memfit.load. Its ETag and Repr-Digest are of its bytes; a broken download may go on with Range."""
    with context.database.reading() as session:
        check_held(session, caller, "plan", id)
        plan = find_plan(session, id)
    if plan.checkpoint_digest is None:
        raise CheckpointNotReady(plan)
    return file_answer(request, context.store.path("checkpoints", plan.checkpoint_digest), plan.checkpoint_digest, f"{plan.id}.pt2")
