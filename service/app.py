"""The HTTP service: what it is made of, and how it starts and stops."""

import fcntl
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from threading import BoundedSemaphore

from fastapi import Depends, FastAPI
from fastapi.concurrency import run_in_threadpool
from sqlalchemy import delete

from models import JobRecord, ReplyRecord
from service import devices, health, jobs, metrics, problem_answers, problem_pages, profiles, removal, resumable, system, uploads, usage
from service.access import authenticate
from service.busy import Busy
from service.context import Context
from service.database import Database
from service.events import Hub
from service.files import rewrite_older_models
from service.idempotency import Idempotency
from service.keys import check_keys_for
from service.logs import RequestLog
from service.metrics import Metrics
from service.plans.requests import PlanBody
from service.plans.routes import router as plans
from service.rates import Rates
from service.removal import Collector
from service.settings import Settings
from service.store import Store
from service.worker import Worker

logger = logging.getLogger(__name__)
DESCRIPTION = """Plans the training of PyTorch models into a budget of memory, and proves the plan by a measured step.

Send a model, a sample and a budget to `POST /v1/plans`, follow its job, and download the checkpoint.
Errors are problem documents (RFC 9457) of the type `application/problem+json`."""


class DataInUse(RuntimeError):
    """Another server works with the same data folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"another memfit server uses {folder}. Stop it, or give this one a folder of its own (--data, MEMFIT_DATA_DIR).")


def create_app(settings: Settings | None = None) -> FastAPI:
    """The service's app. It owns the settings' data folder from start to stop.

    Raises:
        DataInUse: on start, if another server does.
    """
    chosen = settings or Settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with owning(chosen.data_dir):
            context = await run_in_threadpool(_start, chosen)
            app.state.context = context
            try:
                yield
            finally:
                context.hub.close()
                await run_in_threadpool(_stop, context)

    app = FastAPI(
        title="memfit",
        version=system.memfit_version(),
        description=DESCRIPTION,
        lifespan=lifespan,
        generate_unique_id_function=lambda route: route.name,
    )
    problem_answers.install(app)
    app.add_middleware(Idempotency)
    app.add_middleware(RequestLog)
    for router in (
        plans,
        uploads.router,
        profiles.router,
        jobs.router,
        resumable.router,
        removal.router,
        devices.router,
        system.router,
        usage.router,
    ):
        app.include_router(router, dependencies=[Depends(authenticate)])

    for router in (health.router, metrics.router, problem_pages.router):
        app.include_router(router)
    describe(app)
    return app


def describe(app: FastAPI) -> None:
    """Add to the description of the calls what their functions' types do not show: bodies they read themselves, and problems."""
    generate = app.openapi

    def openapi() -> dict[str, object]:
        known = app.openapi_schema is not None
        description = generate()
        if not known:
            schemas = description.setdefault("components", {}).setdefault("schemas", {})
            for model in (PlanBody, uploads.UploadBody, problem_answers.ProblemAnswer):
                schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
                schemas |= schema.pop("$defs", {}) | {model.__name__: schema}
        return description

    app.openapi = openapi  # type: ignore[method-assign]


def _start(settings: Settings) -> Context:
    database, store, hub = Database(settings.url), Store(settings.data_dir), Hub[JobRecord]()
    database.migrate()
    with database.transaction() as session:  # requests that were under way when the last server died
        session.execute(delete(ReplyRecord).where(ReplyRecord.status.is_(None)))
    with database.reading() as session:
        check_keys_for(session, settings.host)
    store.open()
    confinement = settings.confinement
    rewrite_older_models(database, store, confinement)
    measured = Metrics(database, store)
    worker = Worker(database, store, hub, confinement, measured, settings.workers)
    worker.start()
    collector = Collector(database, store)
    collector.start()
    logger.info("memfit serves %s", settings.data_dir.absolute())
    return Context(
        settings, database, store, hub, worker, confinement, BoundedSemaphore(settings.workers), Busy(), Rates(), collector, measured
    )


def _stop(context: Context) -> None:
    context.worker.stop()
    context.collector.stop()
    context.database.close()


@contextmanager
def owning(folder: Path) -> Iterator[None]:
    """Hold the folder's lock. The system lets go of it when the process ends, however it ends.

    Raises:
        DataInUse: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataInUse(folder.absolute()) from None
        yield
