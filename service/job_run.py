"""One job from its records to its result: reads, calls the pipeline, writes."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sqlalchemy.orm import Session

from models import JobKind, JobRecord, ModelRecord, PlanRecord, PlanState, ProfileRecord, ProfileState, SampleRecord
from planner.errors import InfeasibleBudget
from planner.plan import Plan
from planner.profile import Profile
from planner.request import PlanRequest, ProfileSettings
from service import pipeline, queue
from service.database import Database
from service.documents import CERTIFICATE, PLAN, PLAN_REQUEST, PROBLEM, PROFILE
from service.files import program_path, sample_path
from service.outages import outage_of, persistently
from service.problems import document_of
from service.stage_process import Cancelled, Stages
from service.store import Kind, Store, finished_digest
from service.stored import read_plan, read_profile, readable

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
SECONDS_BETWEEN_NOTES = 0.1


@dataclass(frozen=True)
class _Subject:
    """What a job works on."""

    profile_id: str
    model: Path
    sample: Path
    settings: ProfileSettings
    profile: Profile | None
    request: PlanRequest | None
    plan: Plan | None


class JobRun:
    """Runs one attempt of a job, as the pipeline's observer: every note of progress is committed.

    It may be run again from any point without harm: what it keeps is named by its content, and only the last attempt may record it.
    An outage of the database or of the store is waited for. `ready` hears of the predicted and the measured peak of a plan.
    """

    def __init__(self, database: Database, store: Store, job: JobRecord, stages: Stages, ready: Callable[[int, int], None]) -> None:
        self._database, self._store, self._job, self._stages, self._ready = database, store, job, stages, ready
        self._noted_at, self._noted_stage = 0.0, ""

    def run(self) -> None:
        """
        Raises:
            Cancelled: the attempt counts no more: the job was cancelled or taken over, or the worker stops.
            Exception: whatever made it fail; the caller notes that.
        """
        subject = self._persistently(self._subject)
        profile = subject.profile
        if profile is None:
            self._write(lambda session: self._take_over_profile(session, subject.profile_id))
            profile = pipeline.measure(self._stages, subject.model, subject.sample, subject.settings, self)
            self._save_profile(subject.profile_id, profile, finish=subject.request is None)
        elif subject.request is None:
            self._finish(lambda session: None)
        if subject.request is None:
            return
        try:
            verified = pipeline.prove(self._stages, subject.model, subject.sample, profile, subject.request, self, subject.plan)
        except InfeasibleBudget as error:
            self._finish_infeasible(error)
        else:
            self._finish_ready(verified)

    def progress(self, stage: pipeline.Stage, fraction: float, message: str) -> None:
        """Commit how far the job is, a few times a second and at every new stage. While the database is away, nothing is noted."""
        self._stages.cancellation.check()
        if stage == self._noted_stage and fraction < 1 and time.monotonic() - self._noted_at < SECONDS_BETWEEN_NOTES:
            return
        self._noted_at, self._noted_stage = time.monotonic(), stage
        try:
            with self._database.transaction(alone=False) as session:
                job = queue.advance(session, self._job.id, self._job.attempt, stage, fraction, message)
        except Exception as error:
            if outage_of(error) is None:
                raise
            logger.warning("no progress is noted now: %s", error)
            return
        if job is None:
            raise Cancelled

    def solved(self, plan: Plan) -> None:
        def save(session: Session) -> None:
            record = session.get_one(PlanRecord, self._job.subject_id)
            record.plan_json, record.budget_bytes = PLAN.dump_json(plan).decode(), plan.budget_bytes

        self._write(save)

    def _subject(self) -> _Subject:
        with self._database.reading() as session:
            plan = session.get_one(PlanRecord, self._job.subject_id) if self._job.kind == JobKind.PLAN else None
            record = session.get_one(ProfileRecord, plan.profile_id if plan is not None else self._job.subject_id)
            model, sample = session.get_one(ModelRecord, record.model_digest), session.get_one(SampleRecord, record.sample_digest)
        return _Subject(
            profile_id=record.id,
            model=program_path(self._store, model),
            sample=sample_path(self._store, sample),
            settings=settings_of(record),
            profile=readable(lambda: read_profile(self._store, record)),
            request=PLAN_REQUEST.validate_json(plan.request_json) if plan is not None else None,
            plan=readable(lambda: read_plan(plan)) if plan is not None else None,
        )

    def _take_over_profile(self, session: Session, profile_id: str) -> None:
        """This job measures the profile, whichever was to do so before."""
        record = session.get_one(ProfileRecord, profile_id)
        record.state, record.job_id, record.problem_json = ProfileState.QUEUED, self._job.id, None

    def _save_profile(self, profile_id: str, profile: Profile, finish: bool) -> None:
        (file := self._stages.folder / "profile.json").write_bytes(PROFILE.dump_json(profile))
        digest = self._keep("profiles", file)

        def save(session: Session) -> None:
            self._store.keep_still("profiles", file, digest)
            record = session.get_one(ProfileRecord, profile_id)
            record.state, record.problem_json = ProfileState.READY, None
            record.content_digest, record.content_bytes = digest, file.stat().st_size

        self._finish(save) if finish else self._write(save)

    def _finish_ready(self, verified: pipeline.VerifiedPlan) -> None:
        digest = self._keep("checkpoints", verified.checkpoint)

        def save(session: Session) -> None:
            self._store.keep_still("checkpoints", verified.checkpoint, digest)
            record = session.get_one(PlanRecord, self._job.subject_id)
            record.state, record.checkpoint_digest = PlanState.READY, digest
            record.checkpoint_bytes = verified.checkpoint.stat().st_size
            record.plan_json = PLAN.dump_json(verified.plan).decode()
            record.certificate_json = CERTIFICATE.dump_json(verified.certificate).decode()

        self._finish(save)
        self._ready(verified.plan.predicted_peak_bytes, verified.certificate.measured_peak_bytes)

    def _finish_infeasible(self, error: InfeasibleBudget) -> None:
        self._finish(lambda session: mark_infeasible(session.get_one(PlanRecord, self._job.subject_id), error))

    def _keep(self, kind: Kind, file: Path) -> str:
        digest = finished_digest(file)
        self._persistently(lambda: self._store.keep(kind, file, digest))
        return digest

    def _write(self, save: Callable[[Session], None]) -> None:
        """Save what was found on the way, if this attempt still counts."""

        def write() -> None:
            with self._database.transaction() as session:
                if not queue.counts(session, self._job.id, self._job.attempt):
                    raise Cancelled
                save(session)

        self._persistently(write)

    def _finish(self, save: Callable[[Session], None]) -> None:
        """Save the result and end the job in one transaction; neither if the attempt counts no more."""

        def finish() -> None:
            with self._database.transaction() as session:
                if queue.succeed(session, self._job.id, self._job.attempt) is None:
                    raise Cancelled
                save(session)

        self._persistently(finish)

    def _persistently(self, work: Callable[[], Result]) -> Result:
        return persistently(work, self._stages.cancellation.check)


def mark_infeasible(record: PlanRecord, error: InfeasibleBudget) -> None:
    """The answer to a budget that no plan fits. A plan chosen before a measured step proved that is dropped."""
    record.state, record.budget_bytes, record.plan_json = PlanState.INFEASIBLE, error.budget_bytes, None
    record.problem_json = PROBLEM.dump_json(document_of(error)).decode()


def settings_of(record: ProfileRecord) -> ProfileSettings:
    return ProfileSettings(record.loss, "batch" if record.batch_norm == "batch" else "frozen", record.batch_size)
