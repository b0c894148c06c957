"""What a caller has, and may have."""

from pydantic import BaseModel, ConfigDict, Field

from service.access import CallerDep, Thing, active_jobs, calls, largest_stored, stored_bytes
from service.context import ContextDep

MOST = 100


class StoredThing(BaseModel):
    """Something whose bytes count: a model or a sample as it was sent, an upload, a profile, or a plan with its checkpoint."""

    model_config = ConfigDict(frozen=True)

    kind: Thing
    id: str
    bytes: int


class UsageAnswer(BaseModel):
    """What the key holds, beside its limits; a limit of null is none."""

    model_config = ConfigDict(frozen=True)

    key: str | None = Field(description="Name of the key; null where the service needs none.")
    active_jobs: int = Field(description="Jobs that wait or run.")
    active_jobs_limit: int | None
    stored_bytes: int = Field(description="Models, samples and unfinished uploads, as they were sent; profiles and checkpoints.")
    stored_bytes_limit: int | None
    largest: tuple[StoredThing, ...] = Field(description=f"The largest {MOST} things of these bytes. DELETE lets go of them.")
    requests_per_minute_limit: int | None


router = calls("/v1/usage", "keys")


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
            largest=tuple(StoredThing(kind=kind, id=id, bytes=bytes) for kind, id, bytes in largest_stored(session, caller, MOST)),
            requests_per_minute_limit=key.requests_per_minute if key is not None else None,
        )
