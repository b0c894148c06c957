"""Who may do what: every call has a caller, who sees their own things, within their limits."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Path, Request
from fastapi.concurrency import run_in_threadpool
from sqlalchemy import CompoundSelect, delete, func, literal, select, union_all
from sqlalchemy.orm import InstrumentedAttribute, Session

from models import HoldingRecord, JobRecord, JobState, ModelRecord, PlanRecord, ProfileRecord, SampleRecord, UploadRecord
from service.context import Context, context_of
from service.keys import Caller, caller_of
from service.problem_answers import RESPONSES
from service.problems import NotFound
from service.rates import TooMany

Thing = Literal["model", "sample", "profile", "plan", "job", "upload", "device"]
READS = {"GET", "HEAD", "OPTIONS"}
STORED: tuple[tuple[Thing, InstrumentedAttribute[str], InstrumentedAttribute[int]], ...] = (
    ("model", ModelRecord.digest, ModelRecord.bytes),
    ("sample", SampleRecord.digest, SampleRecord.bytes),
    ("upload", UploadRecord.id, UploadRecord.bytes),
    ("profile", ProfileRecord.id, ProfileRecord.content_bytes),
    ("plan", PlanRecord.id, PlanRecord.checkpoint_bytes),
)
IdPath = Annotated[str, Path(description="As the answer that made it says.", examples=["e16d35ca-2689-42ee-8a20-21f778a2f283"])]


async def authenticate(request: Request) -> Caller:
    """The caller of a request, whose key has the scope for it. A key that was looked at is good for another second."""
    context, authorization = context_of(request), request.headers.get("authorization")
    caller = context.callers.find(authorization)
    if caller is None:
        caller = await run_in_threadpool(_caller, context, authorization)
        context.callers.keep(authorization, caller)
    if caller.key is not None and caller.key.requests_per_minute is not None:
        context.rates.take(caller.key.id, caller.key.requests_per_minute)
    caller.check_scope("read" if request.method in READS else "write")
    return caller


def _caller(context: Context, authorization: str | None) -> Caller:
    with context.database.reading() as session:
        return caller_of(session, authorization)


CallerDep = Annotated[Caller, Depends(authenticate)]


def calls(prefix: str, *tags: str) -> APIRouter:
    """A router of calls that need a caller."""
    return APIRouter(
        prefix=prefix,
        tags=[*tags],
        dependencies=[Depends(authenticate)],
        responses=RESPONSES,
        generate_unique_id_function=lambda route: route.name,
    )


def holds(session: Session, caller: Caller, kind: Thing, id: str) -> bool:
    """Whether a caller with a key has the thing."""
    return session.get(HoldingRecord, (caller.key_id, kind, id)) is not None


def hold(session: Session, caller: Caller, kind: Thing, id: str) -> None:
    """From now on the thing is the caller's too."""
    if caller.key is not None and not holds(session, caller, kind, id):
        session.add(HoldingRecord(key_id=caller.key.id, kind=kind, subject_id=id))
        session.flush()


def check_held(session: Session, caller: Caller, kind: Thing, id: str) -> None:
    """
    Raises:
        NotFound: the thing is not the caller's. Whether it is another's is not told.
    """
    if not caller.sees_all and not holds(session, caller, kind, id):
        raise NotFound(kind, id, "Ids come with the answers that made them, and are for the key that asked.")


def let_go(session: Session, caller: Caller, kind: Thing, id: str) -> bool:
    """The thing is not the caller's any more; whether it is nobody's now."""
    ours = (HoldingRecord.kind == kind) & (HoldingRecord.subject_id == id)
    if caller.sees_all:
        session.execute(delete(HoldingRecord).where(ours))
        return True
    session.execute(delete(HoldingRecord).where(ours, HoldingRecord.key_id == caller.key_id))
    return session.scalar(select(func.count()).select_from(HoldingRecord).where(ours)) == 0


def check_jobs(session: Session, caller: Caller) -> None:
    """For a job that is about to be made. In its transaction, so that of many that are asked for at once no more are made.

    Raises:
        TooMany: the caller has as many jobs waiting or running as they may, or more bytes, and a job would make more.
    """
    most = caller.key.active_jobs if caller.key is not None else None
    if most is not None and active_jobs(session, caller) >= most:
        raise TooMany("active_jobs", most, "Wait for one to end, or cancel one.", 30)
    check_bytes(session, caller, 0)


def check_bytes(session: Session, caller: Caller, more: int) -> None:
    """
    Raises:
        TooMany: with `more`, the caller has more bytes than they may.
    """
    most = caller.key.stored_bytes if caller.key is not None else None
    if most is not None and stored_bytes(session, caller) + more > most:
        raise TooMany("stored_bytes", most, "GET /v1/usage names the largest things; delete what you no longer need.", 3600)


def check_file(session: Session, caller: Caller, kind: Thing, digest: str, more: int) -> None:
    """For a file of `more` bytes that came: before it is opened, and in the transaction that takes it in. One they have costs nothing.

    Raises:
        TooMany: with it, the caller has more bytes than they may.
    """
    if not holds(session, caller, kind, digest):
        check_bytes(session, caller, more)


def active_jobs(session: Session, caller: Caller) -> int:
    held = select(HoldingRecord.subject_id).where(HoldingRecord.key_id == caller.key_id, HoldingRecord.kind == "job")
    count = select(func.count()).select_from(JobRecord).where(JobRecord.state.in_((JobState.QUEUED, JobState.RUNNING)))
    return session.scalar(count.where(JobRecord.id.in_(held)) if caller.key is not None else count) or 0


def stored_bytes(session: Session, caller: Caller) -> int:
    """Bytes of what the caller holds: models and samples as they were sent, uploads not taken in yet, profiles and checkpoints."""
    stored = _stored(caller).subquery()
    return session.scalar(select(func.coalesce(func.sum(stored.c.bytes), 0))) or 0


def largest_stored(session: Session, caller: Caller, most: int) -> list[tuple[Thing, str, int]]:
    """Kind, id and bytes of the largest of these things."""
    stored = _stored(caller).subquery()
    found = session.execute(select(stored).order_by(stored.c.bytes.desc(), stored.c.kind, stored.c.id).limit(most))
    return [(kind, id, bytes) for kind, id, bytes in found]


def _stored(caller: Caller) -> CompoundSelect[tuple[Thing, str, int]]:
    parts = []
    for kind, id, bytes in STORED:
        part = select(literal(kind).label("kind"), id.label("id"), bytes.label("bytes")).where(bytes > 0)
        held = select(HoldingRecord.subject_id).where(HoldingRecord.key_id == caller.key_id, HoldingRecord.kind == kind)
        parts.append(part.where(id.in_(held)) if caller.key is not None else part)
    return union_all(*parts)
