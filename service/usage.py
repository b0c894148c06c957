"""What a caller has, and may have."""

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from service.access import CallerDep, active_jobs, stored_bytes
from service.context import ContextDep
from service.problem_answers import RESPONSES


class UsageAnswer(BaseModel):
    """What the key holds, beside its limits; a limit of null is none."""

    model_config = ConfigDict(frozen=True)

    key: str | None = Field(description="Name of the key; null where the service needs none.")
    active_jobs: int = Field(description="Jobs that wait or run.")
    active_jobs_limit: int | None
    stored_bytes: int = Field(description="Models, samples and unfinished uploads, as they were sent; profiles and checkpoints.")
    stored_bytes_limit: int | None
    requests_per_minute_limit: int | None


router = APIRouter(prefix="/v1/usage", tags=["keys"], responses=RESPONSES)


@router.get("", operation_id="get_usage")
def get_usage(caller: CallerDep, context: ContextDep) -> UsageAnswer:
    """What the key of this request holds, and its limits."""
    key = caller.key
    with context.database.reading() as session:
        return UsageAnswer(
            key=key.name if key is not None else None,
            active_jobs=active_jobs(session, caller),
            active_jobs_limit=key.active_jobs if key is not None else None,
            stored_bytes=stored_bytes(session, caller),
            stored_bytes_limit=key.stored_bytes if key is not None else None,
            requests_per_minute_limit=key.requests_per_minute if key is not None else None,
        )
