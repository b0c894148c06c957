"""The HTTP service: what it is made of, and how it starts and stops."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool

from models import JobRecord
from service import devices, health, jobs, metrics, problem_answers, problem_pages, profiles, removal, resumable, system, uploads, usage
from service.busy import Busy
from service.context import Context
from service.database import Database
from service.events import Hub
from service.files import rewrite_older_models
from service.idempotency import Idempotency, let_be_sent_again
from service.keys import Callers, check_keys_for
from service.logs import RequestLog
from service.metrics import Metrics
from service.notices import Notices
from service.outages import persistently
from service.place import at_home
from service.plans.requests import PlanBody
from service.plans.routes import router as plans
from service.programs import MOST, KeptPrograms
from service.rates import Rates
from service.removal import Collector
from service.rendered import Rendered
from service.runner import Runner
from service.settings import Settings
from service.store import Store
from service.turns import Turns
from service.worker import Worker

logger = logging.getLogger(__name__)
DESCRIPTION = """Plans the training of PyTorch models into a budget of memory, and proves the plan by a measured step.

Send a model, a sample and a budget to `POST /v1/plans`, follow its job, and download the checkpoint.
Errors are problem documents (RFC 9457) of the type `application/problem+json`."""
PARTS = (
    plans,
    uploads.router,
    profiles.router,
    jobs.router,
    resumable.router,
    removal.router,
    devices.router,
    system.router,
    usage.router,
    health.router,
    metrics.router,
    problem_pages.router,
)


def create_app(settings: Settings | None = None) -> FastAPI:
    """The service's app. It owns the settings' data folder from start to stop.

    Raises:
        DataInUse: on start, if another server does.
    """
    chosen = settings or Settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with at_home(chosen) as store:
            context = await run_in_threadpool(_start, chosen, store)
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
        routes=[route for part in PARTS for route in part.routes],  # included as routers, each would be looked through twice a request
    )
    problem_answers.install(app)
    app.add_middleware(Idempotency)
    app.add_middleware(RequestLog)
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


def _start(settings: Settings, store: Store) -> Context:
    database, hub = Database(settings.url), Hub[JobRecord]()
    persistently(database.migrate, lambda: None)
    with database.reading() as session:
        check_keys_for(session, settings.host)
    confinement = settings.confinement
    measured = Metrics(database, store)
    database.told.append(lambda job: hub.tell(job.id, job))
    database.topics.append(hub.topics)
    worker, notices = None, None
    if settings.shared:
        notices = Notices(database)
        notices.start()
    else:
        with database.transaction() as session:
            let_be_sent_again(session)
        rewrite_older_models(database, store, confinement)
        worker = Worker(database, Runner(database, store, confinement, measured), settings.workers)
        worker.start()
    collector = Collector(database, store)
    collector.start()
    logger.info("memfit serves %s", settings.data_dir.absolute())
    return Context(
        settings,
        database,
        store,
        hub,
        worker,
        notices,
        confinement,
        Turns(settings.workers),
        Turns(MOST),
        Busy(),
        Rates(),
        Callers(),
        Rendered(),
        KeptPrograms(store),
        collector,
        measured,
    )


def _stop(context: Context) -> None:
    for part in (context.worker, context.notices, context.collector):
        if part is not None:
            part.stop()
    context.database.close()
