"""Deleting models, samples, profiles and plans, and collecting the files that nothing refers to any more."""

import logging
import time
from datetime import timedelta
from threading import Event, Thread

from fastapi import status
from sqlalchemy import delete, select, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from models import (
    HoldingRecord,
    JobKind,
    JobRecord,
    JobState,
    ModelRecord,
    PlanRecord,
    ProfileRecord,
    ReplyRecord,
    SampleRecord,
    UploadRecord,
)
from models.base import now
from service.access import CallerDep, IdPath, calls, check_held, let_go
from service.context import ContextDep
from service.database import Database
from service.keys import Caller
from service.plans.queries import find_plan
from service.problems import Problem
from service.profiles import find_profile
from service.store import Kind, Store, digest_of
from service.uploads import DigestPath, find_model, find_sample

logger = logging.getLogger(__name__)
SECONDS_TO_BE_REFERRED_TO = 3600.0  # a file is placed shortly before the record that names it
SECONDS_BETWEEN_COLLECTIONS = 600.0
SECONDS_TO_READ_A_LOG = 7 * 24 * 3600.0  # of an upload that failed: it has no job
DAYS_KEPT: tuple[tuple[type[UploadRecord] | type[ReplyRecord], int], ...] = ((UploadRecord, 7), (ReplyRecord, 1))
NAMED: dict[Kind, tuple[InstrumentedAttribute[str] | InstrumentedAttribute[str | None], ...]] = {
    "models": (ModelRecord.digest,),
    "programs": (ModelRecord.content_digest,),
    "samples": (SampleRecord.digest, SampleRecord.content_digest),
    "profiles": (ProfileRecord.content_digest,),
    "checkpoints": (PlanRecord.checkpoint_digest,),
}


class InUse(Problem):
    """Something is made of it, or a job works on it."""

    kind, title, status = "in-use", "It is in use", 409


router = calls("/v1")


@router.delete("/models/{id}", status_code=status.HTTP_204_NO_CONTENT, tags=["models"], operation_id="delete_model")
def delete_model(id: DigestPath, caller: CallerDep, context: ContextDep) -> None:
    """Delete a model that no profile of yours is of. Its bytes go when nobody else has it."""
    with context.database.transaction() as session:
        check_held(session, caller, "model", id)
        find_model(session, id)
        _check_no_profiles(session, caller, ProfileRecord.model_digest == id)
        if let_go(session, caller, "model", id) and not _has(session, ProfileRecord.model_digest == id):
            session.execute(delete(ModelRecord).where(ModelRecord.digest == id))


@router.delete("/samples/{id}", status_code=status.HTTP_204_NO_CONTENT, tags=["samples"], operation_id="delete_sample")
def delete_sample(id: DigestPath, caller: CallerDep, context: ContextDep) -> None:
    """Delete a sample that no profile of yours is of. Its bytes go when nobody else has it."""
    with context.database.transaction() as session:
        check_held(session, caller, "sample", id)
        find_sample(session, id)
        _check_no_profiles(session, caller, ProfileRecord.sample_digest == id)
        if let_go(session, caller, "sample", id) and not _has(session, ProfileRecord.sample_digest == id):
            session.execute(delete(SampleRecord).where(SampleRecord.digest == id))


@router.delete("/profiles/{id}", status_code=status.HTTP_204_NO_CONTENT, tags=["profiles"], operation_id="delete_profile")
def delete_profile(id: IdPath, caller: CallerDep, context: ContextDep) -> None:
    """Delete a profile that no plan of yours is of, with the jobs that measured it."""
    with context.database.transaction() as session:
        check_held(session, caller, "profile", id)
        record = find_profile(session, id)
        plans = session.scalars(select(PlanRecord.id).where(PlanRecord.profile_id == id)).all()
        own = [plan for plan in plans if caller.sees_all or session.get(HoldingRecord, (caller.key_id, "plan", plan)) is not None]
        if own:
            raise InUse(f"the profile {id!r} is that of plans ({', '.join(own[:3])}). Delete those first.", plans=own)
        _check_not_worked_on(session, record.job_id)
        if let_go(session, caller, "profile", id) and not plans:
            jobs = set(session.scalars(select(JobRecord.id).where(JobRecord.kind == JobKind.PROFILE, JobRecord.subject_id == id)))
            session.delete(record)
            session.flush()
            _delete_jobs(session, context.store, jobs)


@router.delete("/plans/{id}", status_code=status.HTTP_204_NO_CONTENT, tags=["plans"], operation_id="delete_plan")
def delete_plan(id: IdPath, caller: CallerDep, context: ContextDep) -> None:
    """Delete a plan that is not worked on, with its job and its checkpoint."""
    with context.database.transaction() as session:
        check_held(session, caller, "plan", id)
        record = find_plan(session, id)
        _check_not_worked_on(session, record.job_id)
        job = record.job_id
        let_go(session, caller, "plan", id)
        session.delete(record)
        session.flush()
        if job is not None:
            session.execute(update(ProfileRecord).where(ProfileRecord.job_id == job).values(job_id=None))
            _delete_jobs(session, context.store, {job})


def _delete_jobs(session: Session, store: Store, ids: set[str]) -> None:
    """With their logs. Nothing refers to them any more."""
    session.execute(delete(HoldingRecord).where(HoldingRecord.kind == "job", HoldingRecord.subject_id.in_(ids)))
    session.execute(delete(JobRecord).where(JobRecord.id.in_(ids)))
    for id in ids:
        store.remove_log(id)


def _has(session: Session, condition: "InstrumentedAttribute[bool] | object") -> bool:
    return session.scalar(select(ProfileRecord.id).where(condition).limit(1)) is not None  # type: ignore[arg-type]


def _check_no_profiles(session: Session, caller: Caller, condition: object) -> None:
    profiles = session.scalars(select(ProfileRecord.id).where(condition)).all()  # type: ignore[arg-type]
    own = [id for id in profiles if caller.sees_all or session.get(HoldingRecord, (caller.key_id, "profile", id)) is not None]
    if own:
        raise InUse(f"it is measured in profiles ({', '.join(own[:3])}). Delete those first.", profiles=own)


def _check_not_worked_on(session: Session, job_id: str | None) -> None:
    state = session.scalar(select(JobRecord.state).where(JobRecord.id == job_id))
    if state is not None and not JobState(state).finished:
        raise InUse(f"the job {job_id!r} is {state}. Cancel it with DELETE /v1/jobs/{job_id} first.", job=job_id)


def collect(database: Database, store: Store, older_than_seconds: float = SECONDS_TO_BE_REFERRED_TO) -> int:
    """Remove files that no record names, logs of no job, and uploads and replies that nobody asked for any more; bytes that were freed."""
    with database.reading() as session:
        named = _named(session)
        jobs = set(session.scalars(select(JobRecord.id)))
    # Looked for without keeping others from writing, which takes a while where files are elsewhere.
    forgotten = {
        kind: [kept for digest, kept in store.older(kind, older_than_seconds).items() if digest not in named[kind]] for kind in NAMED
    }
    freed = store.remove_logs(lambda name: name not in jobs, max(older_than_seconds, SECONDS_TO_READ_A_LOG))
    with database.transaction() as session:
        for record, days in DAYS_KEPT:
            session.execute(delete(record).where(record.created_at < now() - timedelta(days=days)))
        session.flush()
        uploads = set(session.scalars(select(UploadRecord.id)))
        gone = HoldingRecord.subject_id.not_in(select(UploadRecord.id))
        session.execute(delete(HoldingRecord).where(HoldingRecord.kind == "upload", gone))
        freed += store.remove_uploads(lambda id: id not in uploads, older_than_seconds)
        # Within a transaction that runs alone: a record that names a file again is written in one, and looks whether it is still there.
        named = _named(session) if any(forgotten.values()) else {}
        for kind, found in forgotten.items():
            for kept in found:
                if digest_of(kept) not in named[kind]:
                    store.remove(kept)
                    freed += kept.bytes
    return freed


def _named(session: Session) -> dict[Kind, set[str | None]]:
    """Digests of files that records name."""
    return {kind: {digest for column in columns for digest in session.scalars(select(column))} for kind, columns in NAMED.items()}


class Collector:
    """Collects from time to time, in a thread of the server."""

    def __init__(self, database: Database, store: Store) -> None:
        self._database, self._store, self._stopping = database, store, Event()
        self._thread = Thread(target=self._run, name="collector", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            begin = time.monotonic()
            try:
                if freed := collect(self._database, self._store):
                    logger.info("collected %s bytes that nothing referred to in %.1f s", f"{freed:,}", time.monotonic() - begin)
            except Exception:  # the database, or its disk: it is tried again
                logger.exception("nothing could be collected")
            if self._stopping.wait(SECONDS_BETWEEN_COLLECTIONS):
                return
