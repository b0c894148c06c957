"""`memfit worker`: runs jobs that Procrastinate hands out, and hands those of dead workers to others."""

import asyncio
import logging
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import procrastinate
from procrastinate import PsycopgConnector, RetryStrategy
from procrastinate.jobs import Status
from procrastinate.manager import JobManager
from prometheus_client import start_http_server
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

from models import JobQueue, JobRecord
from service import queue
from service.cluster import TASK, hand_over_again, hand_over_forgotten, left_over
from service.database import Database
from service.metrics import Metrics
from service.notices import Notices
from service.outages import persistently
from service.place import at_home
from service.runner import Runner
from service.settings import Settings

logger = logging.getLogger(__name__)
SECONDS_AFTER_MISHAP = 1.0
OTHER_THREADS = 8
CARE = "memfit.care"
Result = TypeVar("Result")


def run(settings: Settings, jobs_of: JobQueue, concurrency: int, metrics_port: int | None) -> None:
    """Work until told to stop; what runs then waits again.

    Raises:
        NoSandbox: one is required, and there is none.
    """
    confinement = settings.confinement
    with at_home(settings) as store:
        database = Database(settings.url)
        persistently(database.migrate, lambda: None)
        metrics = Metrics(database, store)
        if metrics_port is not None:
            start_http_server(metrics_port, registry=metrics.registry)
        runner, notices = Runner(database, store, confinement, metrics), Notices(database)
        notices.start()
        logger.info("memfit works on jobs of the queue %s, %s at a time", jobs_of, concurrency)
        try:
            asyncio.run(_ClusterWorker(settings, database, runner, jobs_of, concurrency).run())
        finally:
            notices.stop()
            database.close()


class _ClusterWorker:
    """Procrastinate's worker, begun again whenever an outage of the database ends it."""

    def __init__(self, settings: Settings, database: Database, runner: Runner, jobs_of: JobQueue, concurrency: int) -> None:
        self._settings, self._database, self._runner = settings, database, runner
        self._jobs_of, self._concurrency, self._stopping = jobs_of, concurrency, False

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(self._concurrency + OTHER_THREADS))
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        while not self._stopping:
            self._working = asyncio.create_task(self._work())
            try:
                await self._working
            except asyncio.CancelledError:
                return
            except Exception as error:  # whatever its driver raises: the database is away, and will be back
                logger.warning("no jobs are handed out now: %s", error)
                await asyncio.sleep(SECONDS_AFTER_MISHAP)

    async def _work(self) -> None:
        seconds = self._settings.stalled_seconds
        address = make_url(self._settings.url).set(drivername="postgresql").render_as_string(hide_password=False)
        app = procrastinate.App(connector=PsycopgConnector(conninfo=address, min_size=1, max_size=4, timeout=10))
        app.task(name=TASK, retry=RetryStrategy(wait=5))(self._run_job)  # it ends in order unless the database stays away

        async def care(timestamp: int) -> None:
            await self._care(app.job_manager, seconds)

        periodic = app.periodic(cron=f"* * * * * */{max(1, seconds // 3)}")  # with one, Procrastinate watches its own heartbeats, too
        periodic(app.task(name=CARE, queue=CARE, queueing_lock=CARE, priority=1)(care))
        async with app.open_async():
            await app.run_worker_async(
                queues=[self._jobs_of, CARE],
                concurrency=self._concurrency,
                install_signal_handlers=False,
                delete_jobs="always",
                update_heartbeat_interval=seconds / 3,
                stalled_worker_timeout=seconds,
            )

    async def _care(self, rows: JobManager, seconds: float) -> None:
        """Hand over again what workers had that gave no sign of life for a while, and what was lost on the way."""
        for row in await rows.get_stalled_jobs(seconds_since_heartbeat=seconds):
            assert row.id is not None
            job_id = row.task_kwargs.get("job")
            if job_id is not None and await self._in_transaction(partial(hand_over_again, job_id=str(job_id), after=row.lock)):
                logger.warning("the worker of job %s is dead: it is handed out again", job_id)
            await rows.finish_job_by_id_async(row.id, Status.FAILED, delete_job=True)
        if forgotten := await self._in_transaction(hand_over_forgotten):
            logger.warning("jobs %s were handed out to nobody, and are again", ", ".join(forgotten))
        for row_id in await self._in_transaction(partial(left_over, seconds=seconds)):
            await rows.finish_job_by_id_async(row_id, Status.SUCCEEDED, delete_job=True)

    async def _in_transaction(self, work: Callable[[Session], Result]) -> Result:
        def run() -> Result:
            with self._database.transaction() as session:
                return work(session)

        return await asyncio.to_thread(run)

    def _run_job(self, job: str) -> None:
        """Run a job, if it is to be run. In a thread."""

        def take() -> JobRecord | None:
            with self._database.transaction(alone=False) as session:
                return queue.take(session, job)

        taken = persistently(take, self._runner.check_stopping)
        if taken is not None:
            self._runner.run(taken)

    def _stop(self) -> None:
        self._stopping = True
        self._runner.stop()
        self._working.cancel()
