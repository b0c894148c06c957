"""What the calls of the service share, made once when it starts."""

from dataclasses import dataclass
from typing import Annotated, Protocol

from fastapi import Depends, Request
from prometheus_client import CollectorRegistry

from models import JobRecord
from service.busy import Busy
from service.database import Database
from service.events import Hub
from service.keys import Callers
from service.notices import Notices
from service.programs import KeptPrograms
from service.rates import Rates
from service.rendered import Rendered
from service.sandbox import Confinement
from service.settings import Settings
from service.store import Store
from service.turns import Turns
from service.worker import Worker


class Stoppable(Protocol):
    """Work in the background that ends when it is told to."""

    def stop(self) -> None: ...


class Counting(Protocol):
    """What is counted, as `service.metrics` does."""

    registry: CollectorRegistry


@dataclass(frozen=True)
class Context:
    """
    Attributes:
        hub: events of jobs, by job id.
        worker, notices: the first where the program is alone, the second where several share a database.
        confinement: of the processes that open uploaded files.
        uploads: the resumable ones that a request has now.
        opening, solving: turns of requests that open an uploaded model, each in a process with torch, and of those that solve.
    """

    settings: Settings
    database: Database
    store: Store
    hub: Hub[JobRecord]
    worker: Worker | None
    notices: Notices | None
    confinement: Confinement
    opening: Turns
    solving: Turns
    uploads: Busy
    rates: Rates
    callers: Callers
    rendered: Rendered
    programs: KeptPrograms
    collector: "Stoppable"
    metrics: "Counting"


def context_of(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


async def _context(request: Request) -> Context:  # what is not async is given a thread
    return context_of(request)


ContextDep = Annotated[Context, Depends(_context)]
