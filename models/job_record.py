"""A job: work that outlives a request. The table is the queue, and the truth about every job."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import String, Text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Record, UtcDateTime, new_id, now


class JobKind(StrEnum):
    """What a job does: measure a profile, or carry a plan from wherever it stands to a verified checkpoint."""

    PROFILE = "profile"
    PLAN = "plan"


class JobState(StrEnum):
    """queued -> running -> succeeded | failed; queued | running -> cancelled. Nothing leaves the last three.

    A running job whose server stops is queued again.
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
        starts: how often it was started; more than once only after a server died with it.
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
    starts: Mapped[int] = mapped_column(default=0)
    problem_json: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
