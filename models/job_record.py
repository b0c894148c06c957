"""A job: work that outlives a request. The table is the truth about every job; on SQLite it is the queue as well."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import String, Text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Record, UtcDateTime, new_id, now


class JobKind(StrEnum):
    """What a job does: measure a profile, or carry a plan from wherever it stands to a verified checkpoint."""

    PROFILE = "profile"
    PLAN = "plan"


class JobQueue(StrEnum):
    """What the machines are like whose workers run a job."""

    CPU = "cpu"
    GPU = "gpu"


class JobState(StrEnum):
    """queued -> running -> succeeded | failed; queued | running -> cancelled. Nothing leaves the last three.

    A running job whose worker stops is queued again; one whose worker died is taken over by the next attempt.
    """

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def finished(self) -> bool:
        return self not in (JobState.QUEUED, JobState.RUNNING)


class JobRecord(Record):
    """One job.

    Attributes:
        number: the order of arrival, in which jobs are run.
        subject_id: the profile or plan it works for, by `kind`.
        fraction: share of `stage` that is done, 0 to 1.
        attempt: the number of the last attempt to run it. Only that attempt may write about the job: what an earlier one finds is dropped.
        interruptions: attempts whose worker died with them.
        queue: whose workers run it.
        trace: the W3C `traceparent` of the request that made it, where traces are kept.
    """

    __tablename__ = "jobs"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(36), unique=True, default=new_id)
    kind: Mapped[str] = mapped_column(String(16))
    subject_id: Mapped[str] = mapped_column(String(36), index=True)
    state: Mapped[str] = mapped_column(String(16), default=JobState.QUEUED, index=True)
    stage: Mapped[str] = mapped_column(String(16), default="queued")
    fraction: Mapped[float] = mapped_column(default=0.0)
    message: Mapped[str] = mapped_column(Text, default="")
    attempt: Mapped[int] = mapped_column(default=0)
    interruptions: Mapped[int] = mapped_column(default=0, server_default="0")
    queue: Mapped[str] = mapped_column(String(16), default=JobQueue.CPU, server_default=JobQueue.CPU)
    trace: Mapped[str | None] = mapped_column(String(64))
    problem_json: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
