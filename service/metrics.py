"""What the service counts of itself, for Prometheus."""

from collections.abc import Iterator

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import func, select

from models import JobRecord, JobState
from models.base import now
from service.context import ContextDep
from service.database import Database
from service.store import Store

SECONDS = (0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
BYTES = tuple(2.0**power for power in range(27, 38))
ERRORS = (-0.2, -0.1, -0.05, -0.02, -0.01, 0, 0.01, 0.02, 0.05, 0.1, 0.2)


class Metrics:
    """What is observed as it happens, and a look at the queue and the store whenever somebody asks."""

    def __init__(self, database: Database, store: Store) -> None:
        self.registry = CollectorRegistry()
        self._stage_seconds = Histogram(
            "memfit_stage_seconds", "Seconds a stage's process ran.", ["stage"], registry=self.registry, buckets=SECONDS
        )
        self._peak_bytes = Histogram(
            "memfit_stage_peak_bytes", "Most memory a stage's process had.", ["stage"], registry=self.registry, buckets=BYTES
        )
        self._error = Histogram(
            "memfit_prediction_error",
            "Predicted peak of a ready plan, by its measured one, less 1.",
            registry=self.registry,
            buckets=ERRORS,
        )
        self.registry.register(_Now(database, store))

    def stage_done(self, stage: str, seconds: float, peak_bytes: int) -> None:
        self._stage_seconds.labels(stage).observe(seconds)
        self._peak_bytes.labels(stage).observe(peak_bytes)

    def plan_ready(self, predicted_bytes: int, measured_bytes: int) -> None:
        self._error.observe(predicted_bytes / measured_bytes - 1)


class _Now(Collector):
    """The queue and the store, as they are."""

    def __init__(self, database: Database, store: Store) -> None:
        self._database, self._store = database, store

    def collect(self) -> Iterator[GaugeMetricFamily]:
        with self._database.reading() as session:
            counts = dict(session.execute(select(JobRecord.state, func.count()).group_by(JobRecord.state)).all())
            oldest = session.scalar(select(func.min(JobRecord.created_at)).where(JobRecord.state == JobState.QUEUED))
        jobs = GaugeMetricFamily("memfit_jobs", "Jobs, by state.", labels=["state"])
        for state in JobState:
            jobs.add_metric([state], counts.get(state, 0))
        yield jobs
        age = (now() - oldest).total_seconds() if oldest is not None else 0.0
        yield GaugeMetricFamily("memfit_queue_age_seconds", "How long the job that waits longest has waited.", age)
        yield GaugeMetricFamily("memfit_stored_bytes", "Bytes of all files that are kept.", self._store.stored_bytes())


router = APIRouter(tags=["health"])


@router.get("/metrics", response_class=Response, operation_id="get_metrics")
def get_metrics(context: ContextDep) -> Response:
    """What the service counts of itself, as Prometheus reads it."""
    return Response(generate_latest(context.metrics.registry), media_type=CONTENT_TYPE_LATEST)
