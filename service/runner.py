"""Runs jobs that were claimed; the heavy work of each is done by child processes."""

import logging
from threading import Lock
from typing import Protocol

from opentelemetry.trace import Span, SpanKind

from models import JobRecord, JobState
from service import queue, tracing
from service.database import Database
from service.job_run import JobRun
from service.logs import job_id
from service.outages import outage_of, persistently
from service.problems import INTERNAL, document_of
from service.sandbox import Confinement
from service.stage_process import Cancellation, Cancelled, Stages
from service.store import Store

logger = logging.getLogger(__name__)


class Observing(Protocol):
    """Hears what stages took and how well plans were predicted (`service.metrics`)."""

    def stage_done(self, stage: str, seconds: float, peak_bytes: int) -> None: ...

    def plan_ready(self, predicted_bytes: int, measured_bytes: int) -> None: ...


class Runner:
    """Runs jobs, each in the thread that asks, and ends them when they are wanted no more. Many threads may ask."""

    def __init__(self, database: Database, store: Store, confinement: Confinement, metrics: Observing) -> None:
        self._database, self._store, self._confinement, self._metrics = database, store, confinement, metrics
        self._lock, self._stopping = Lock(), False
        self._running: dict[str, tuple[int, Cancellation]] = {}
        database.told.append(self._hear)
        database.topics.append(self._topics)

    def run(self, job: JobRecord) -> None:
        """Run a job that was claimed to its end; if the runner stops meanwhile, it waits again."""
        cancellation, token = Cancellation(), job_id.set(job.id)
        with self._lock:
            self._running[job.id] = job.attempt, cancellation
            if self._stopping:
                cancellation.cancel()
        parent = {tracing.FIELD: job.trace} if job.trace is not None else {}
        try:
            with tracing.span(f"job {job.kind}", SpanKind.CONSUMER, parent, job_id=job.id, job_attempt=job.attempt) as span:
                self._run(job, cancellation, span)
        finally:
            with self._lock:
                if self._running.get(job.id, (0,))[0] == job.attempt:
                    del self._running[job.id]
            job_id.reset(token)

    def stop(self) -> None:
        """End all work; running jobs wait again."""
        with self._lock:
            self._stopping = True
            for _, cancellation in self._running.values():
                cancellation.cancel()

    def check_stopping(self) -> None:
        """
        Raises:
            Cancelled: the runner stops.
        """
        if self._stopping:
            raise Cancelled

    def _run(self, job: JobRecord, cancellation: Cancellation, span: Span) -> None:
        logger.info("job %s begins, attempt %s", job.id, job.attempt)
        try:
            with self._store.workspace() as folder:
                stages = Stages(folder, self._store.log(job.id), cancellation, self._confinement, self._metrics.stage_done)
                JobRun(self._database, self._store, job, stages, self._metrics.plan_ready).run()
                logger.info("job %s is done", job.id)
        except Cancelled:
            tracing.mark_failed(span, "cancelled")
            if self._stopping:
                self._put_back(job)
        except Exception as error:
            tracing.mark_failed(span, type(error).__name__)
            self._fail(job, error)
        finally:
            self._share_log(job)

    def _put_back(self, job: JobRecord) -> None:
        try:
            with self._database.transaction(alone=False) as session:
                queue.put_back(session, job.id, job.attempt)
        except Exception:  # the process ends: what it ran is taken over as that of a dead one
            logger.exception("job %s could not be put back", job.id)

    def _fail(self, job: JobRecord, error: Exception) -> None:
        problem = document_of(outage_of(error) or error)
        if problem.kind == INTERNAL:
            logger.error("job %s failed: %s", job.id, problem.detail, exc_info=error)

        def fail() -> None:
            with self._database.transaction(alone=False) as session:
                queue.fail(session, job.id, job.attempt, problem)

        persistently(fail, self.check_stopping)

    def _share_log(self, job: JobRecord) -> None:
        try:
            self._store.share_log(job.id)
        except Exception as error:  # a log is not worth a job
            logger.warning("the log of job %s stays on this machine: %s", job.id, error)

    def _hear(self, job: JobRecord) -> None:
        """A job was written of, here or elsewhere: an attempt that counts no more ends."""
        with self._lock:
            attempt, cancellation = self._running.get(job.id, (0, None))
            ended = job.attempt == attempt and job.state in (JobState.QUEUED, JobState.FAILED, JobState.CANCELLED)
            if cancellation is not None and (ended or job.attempt > attempt):
                cancellation.cancel()

    def _topics(self) -> list[str]:
        with self._lock:
            return list(self._running)
