"""The job runner of a program that has the database for itself: threads that take jobs from the table in their order."""

import logging
import time
from threading import Event, Thread

from models import JobRecord, JobState
from service import queue
from service.database import Database
from service.runner import Runner

logger = logging.getLogger(__name__)
SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_AFTER_MISHAP = 1.0


class Worker:
    """Claims jobs and runs them, `threads` at a time. One worker owns the jobs of a database."""

    def __init__(self, database: Database, runner: Runner, threads: int) -> None:
        self._database, self._runner = database, runner
        self._threads = [Thread(target=self._work, name=f"worker-{number}", daemon=True) for number in range(threads)]
        self._queued, self._stopping = Event(), False
        database.told.append(self._hear)

    def start(self) -> None:
        """Queue again what ran when the last server died, and begin."""
        with self._database.transaction() as session:
            queue.put_back_interrupted(session)
        for thread in self._threads:
            thread.start()

    @property
    def alive(self) -> bool:
        return all(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        """End all work; running jobs go back into the queue, for the next server."""
        self._stopping = True
        self._runner.stop()
        self._queued.set()
        for thread in self._threads:
            thread.join()

    def _hear(self, job: JobRecord) -> None:
        if job.state == JobState.QUEUED:
            self._queued.set()

    def _work(self) -> None:
        while not self._stopping:
            self._queued.clear()
            try:
                with self._database.transaction() as session:
                    job = queue.claim(session)
                if job is not None:
                    self._runner.run(job)
                    continue
            except Exception:  # the database, or its disk: the thread outlives it, and jobs wait
                logger.exception("the worker could not go on; it tries again")
                time.sleep(SECONDS_AFTER_MISHAP)
            self._queued.wait(SECONDS_BETWEEN_LOOKS)
