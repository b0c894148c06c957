"""A profile: all measurements of one model on one sample with given settings."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import BigInteger, ForeignKey, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Record, UtcDateTime, new_id, now


class ProfileState(StrEnum):
    """queued -> profiling -> ready | failed | cancelled. The last two are queued again when someone asks for the profile anew."""

    QUEUED = "queued"
    PROFILING = "profiling"
    READY = "ready"
    FAILED = "failed"
    CANCELLED = "cancelled"


class ProfileRecord(Record):
    """What was, or will be, measured once for a model, a sample and settings.

    Attributes:
        batch_size: samples a step; never left open, so that equal settings are one record.
        content_digest, content_bytes: SHA-256 and size of the stored profile, once ready.
        problem_json: why it failed: a problem document.
    """

    __tablename__ = "profiles"
    __table_args__ = (UniqueConstraint("model_digest", "sample_digest", "loss", "batch_norm", "batch_size", name="uq_profiles_settings"),)

    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=new_id)
    model_digest: Mapped[str] = mapped_column(ForeignKey("models.digest"))
    sample_digest: Mapped[str] = mapped_column(ForeignKey("samples.digest"))
    loss: Mapped[str] = mapped_column(String(255))
    batch_norm: Mapped[str] = mapped_column(String(16))
    batch_size: Mapped[int]
    state: Mapped[str] = mapped_column(String(16), default=ProfileState.QUEUED)
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"))
    content_digest: Mapped[str | None] = mapped_column(String(64))
    content_bytes: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    problem_json: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
