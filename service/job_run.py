"""One job from its records to its result: reads, calls the pipeline, writes."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
from service.problems import document_of
from service.stage_process import Cancelled, Stages
from service.store import Store

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
    """Runs one job, as the pipeline's observer: every note of progress is committed, then told to `publish`.

    `ready` hears of the predicted and the measured peak of a plan.
    """

    def __init__(
        self,
        database: Database,
        store: Store,
        job: JobRecord,
        stages: Stages,
        publish: Callable[[JobRecord], None],
        ready: Callable[[int, int], None],
    ) -> None:
        self._database, self._store, self._job, self._stages, self._publish = database, store, job, stages, publish
        self._ready = ready
        self._noted_at, self._noted_stage = 0.0, ""

    def run(self) -> None:
        """
        Raises:
            Cancelled: the job is wanted no more, or the server stops.
            Exception: whatever made it fail; the caller notes that.
        """
        with self._database.reading() as session:
            subject = self._subject(session)
        profile = subject.profile
        if profile is None:
            self._take_over_profile(subject.profile_id)
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
        """Commit how far the job is, a few times a second and at every new stage."""
        self._stages.cancellation.check()
        if stage == self._noted_stage and fraction < 1 and time.monotonic() - self._noted_at < SECONDS_BETWEEN_NOTES:
            return
        self._noted_at, self._noted_stage = time.monotonic(), stage
        with self._database.transaction() as session:
            job = queue.advance(session, self._job.id, stage, fraction, message)
        if job is None:
            raise Cancelled
        self._publish(job)

    def solved(self, plan: Plan) -> None:
        with self._database.transaction() as session:
            record = session.get_one(PlanRecord, self._job.subject_id)
            record.plan_json, record.budget_bytes = PLAN.dump_json(plan).decode(), plan.budget_bytes

    def _subject(self, session: Session) -> _Subject:
        plan = session.get_one(PlanRecord, self._job.subject_id) if self._job.kind == JobKind.PLAN else None
        record = session.get_one(ProfileRecord, plan.profile_id if plan is not None else self._job.subject_id)
        return _Subject(
            profile_id=record.id,
            model=program_path(self._store, session.get_one(ModelRecord, record.model_digest)),
            sample=sample_path(self._store, session.get_one(SampleRecord, record.sample_digest)),
            settings=settings_of(record),
            profile=read_profile(self._store, record),
            request=PLAN_REQUEST.validate_json(plan.request_json) if plan is not None else None,
            plan=PLAN.validate_json(plan.plan_json) if plan is not None and plan.plan_json is not None else None,
        )

    def _take_over_profile(self, profile_id: str) -> None:
        """This job measures the profile, whichever was to do so before."""
        with self._database.transaction() as session:
            record = session.get_one(ProfileRecord, profile_id)
            record.state, record.job_id, record.problem_json = ProfileState.QUEUED, self._job.id, None

    def _save_profile(self, profile_id: str, profile: Profile, finish: bool) -> None:
        digest = self._store.keep_bytes("profiles", PROFILE.dump_json(profile))

        def save(session: Session) -> None:
            record = session.get_one(ProfileRecord, profile_id)
            record.state, record.content_digest, record.problem_json = ProfileState.READY, digest, None

        if finish:
            self._finish(save)
        else:
            with self._database.transaction() as session:
                save(session)

    def _finish_ready(self, verified: pipeline.VerifiedPlan) -> None:
        digest = self._store.keep_file("checkpoints", verified.checkpoint)

        def save(session: Session) -> None:
            record = session.get_one(PlanRecord, self._job.subject_id)
            record.state, record.checkpoint_digest = PlanState.READY, digest
            record.plan_json = PLAN.dump_json(verified.plan).decode()
            record.certificate_json = CERTIFICATE.dump_json(verified.certificate).decode()

        self._finish(save)
        self._ready(verified.plan.predicted_peak_bytes, verified.certificate.measured_peak_bytes)

    def _finish_infeasible(self, error: InfeasibleBudget) -> None:
        def save(session: Session) -> None:
            mark_infeasible(session.get_one(PlanRecord, self._job.subject_id), error)

        self._finish(save)

    def _finish(self, save: Callable[[Session], None]) -> None:
        """Save the result and end the job in one transaction; neither if it was cancelled meanwhile."""
        with self._database.transaction() as session:
            job = queue.succeed(session, self._job.id)
            if job is None:
                raise Cancelled
            save(session)
        self._publish(job)


def mark_infeasible(record: PlanRecord, error: InfeasibleBudget) -> None:
    """The answer to a budget that no plan fits. A plan chosen before a measured step proved that is dropped."""
    record.state, record.budget_bytes, record.plan_json = PlanState.INFEASIBLE, error.budget_bytes, None
    record.problem_json = PROBLEM.dump_json(document_of(error)).decode()


def settings_of(record: ProfileRecord) -> ProfileSettings:
    return ProfileSettings(record.loss, "batch" if record.batch_norm == "batch" else "frozen", record.batch_size)


def read_profile(store: Store, record: ProfileRecord) -> Profile | None:
    """What was measured; None if it was not yet."""
    if record.content_digest is None:
        return None
    return PROFILE.validate_json(store.path("profiles", record.content_digest).read_bytes())
