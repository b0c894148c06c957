"""Runs the jobs of the queue, in threads of the server; the heavy work of each is done by child processes."""

import logging
import time
from threading import Event, Lock, Thread
from typing import Protocol

from models import JobRecord
from service import queue
from service.database import Database
from service.events import Hub
from service.job_run import JobRun
from service.logs import job_id
from service.problems import INTERNAL, document_of
from service.sandbox import Confinement
from service.stage_process import Cancellation, Cancelled, Stages
from service.store import Store

logger = logging.getLogger(__name__)
SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_AFTER_MISHAP = 1.0


class Observing(Protocol):
    """Hears what stages took and how well plans were predicted (`service.metrics`)."""

    def stage_done(self, stage: str, seconds: float, peak_bytes: int) -> None: ...

    def plan_ready(self, predicted_bytes: int, measured_bytes: int) -> None: ...


class Worker:
    """Claims jobs in their order and runs them, `threads` at a time. One worker owns the jobs of a database."""

    def __init__(
        self, database: Database, store: Store, hub: Hub[JobRecord], confinement: Confinement, metrics: Observing, threads: int
    ) -> None:
        self._database, self._store, self._hub, self._confinement, self._metrics = database, store, hub, confinement, metrics
        self._threads = [Thread(target=self._work, name=f"worker-{number}", daemon=True) for number in range(threads)]
        self._queued, self._lock = Event(), Lock()
        self._running: dict[str, Cancellation] = {}
        self._stopping = False

    def start(self) -> None:
        """Queue again what ran when the last server died, and begin."""
        with self._database.transaction() as session:
            queue.put_back_interrupted(session)
        for thread in self._threads:
            thread.start()

    @property
    def alive(self) -> bool:
        return all(thread.is_alive() for thread in self._threads)

    def wake(self) -> None:
        """A job was queued."""
        self._queued.set()

    def cancel(self, job_id: str) -> None:
        """End the processes of a job that was cancelled in the database."""
        with self._lock:
            if (cancellation := self._running.get(job_id)) is not None:
                cancellation.cancel()

    def stop(self) -> None:
        """End all work; running jobs go back into the queue, for the next server."""
        with self._lock:
            self._stopping = True
            for cancellation in self._running.values():
                cancellation.cancel()
        self._queued.set()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while not self._stopping:
            self._queued.clear()
            try:
                with self._database.transaction() as session:
                    job = queue.claim(session)
                if job is not None:
                    self._run(job)
                    continue
            except Exception:  # the database, or its disk: the thread outlives it, and jobs wait
                logger.exception("the worker could not go on; it tries again")
                time.sleep(SECONDS_AFTER_MISHAP)
            self._queued.wait(SECONDS_BETWEEN_LOOKS)

    def _run(self, job: JobRecord) -> None:
        cancellation = Cancellation()
        job_id.set(job.id)
        with self._lock:
            self._running[job.id] = cancellation
            if self._stopping:
                cancellation.cancel()
        try:
            with self._store.workspace() as folder:
                stages = Stages(folder, self._store.log(job.id), cancellation, self._confinement, self._metrics.stage_done)
                JobRun(self._database, self._store, job, stages, self._publish, self._metrics.plan_ready).run()
        except Cancelled:
            if self._stopping:
                with self._database.transaction() as session:
                    queue.put_back(session, job.id)
        except Exception as error:
            self._fail(job, error)
        finally:
            with self._lock:
                del self._running[job.id]

    def _fail(self, job: JobRecord, error: Exception) -> None:
        problem = document_of(error)
        if problem.kind == INTERNAL:
            logger.error("job %s failed: %s", job.id, problem.detail, exc_info=error)
        with self._database.transaction() as session:
            failed = queue.fail(session, job.id, problem)
        if failed is not None:
            self._publish(failed)

    def _publish(self, job: JobRecord) -> None:
        self._hub.tell(job.id, job)
