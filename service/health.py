"""Whether the service lives, and whether it can work."""

import shutil

from fastapi import APIRouter
from pydantic import BaseModel

from service.context import ContextDep
from service.problem_answers import RESPONSES
from service.problems import Problem

LEAST_FREE_BYTES = 256 * 2**20


class NotReady(Problem):
    """The service answers, but cannot work now."""

    kind, title, status = "not-ready", "The service cannot work now", 503

    def __init__(self, detail: str) -> None:
        self.headers = {"retry-after": "10"}
        super().__init__(detail)


class Health(BaseModel):
    status: str = "ok"


router = APIRouter(tags=["health"], responses=RESPONSES)


@router.get("/healthz", operation_id="get_health")
def get_health() -> Health:
    """Whether the service answers."""
    return Health()


@router.get("/readyz", operation_id="get_readiness")
def get_readiness(context: ContextDep) -> Health:
    """Whether the service can take work: its database can be written, its disk has room, and its workers live."""
    try:
        with context.database.transaction(alone=False) as session:
            session.connection()
    except Exception as error:  # whatever a driver raises
        raise NotReady(f"the database cannot be written ({type(error).__name__}). See the service's log.") from error
    free = shutil.disk_usage(context.store.root).free
    if free < LEAST_FREE_BYTES:
        raise NotReady(f"the disk has {free:,} bytes left. Free space in the data folder.")
    if context.worker is not None and not context.worker.alive:
        raise NotReady("a worker has ended. See the service's log, and start it again.")
    return Health()
