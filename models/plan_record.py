"""A plan: one choice for everything, for one budget, and what became of it."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import BigInteger, ForeignKey, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Record, UtcDateTime, new_id, now


class PlanState(StrEnum):
    """queued -> profiling -> solving -> patching -> verifying -> ready | infeasible | failed; any but the last -> cancelled.

    Solving starts again when a measured step stayed over the budget.
    """

    QUEUED = "queued"
    PROFILING = "profiling"
    SOLVING = "solving"
    PATCHING = "patching"
    VERIFYING = "verifying"
    READY = "ready"
    INFEASIBLE = "infeasible"
    FAILED = "failed"
    CANCELLED = "cancelled"


class PlanRecord(Record):
    """One request and its answer, as far as it has come.

    Attributes:
        request_json: a `planner.request.PlanRequest`.
        budget_bytes: known once the budget is an amount: a share of the plain step's peak needs the profile first.
        plan_json: a `planner.plan.Plan`, once solved.
        certificate_json: a `planner.plan.Certificate`, once a checkpoint was measured inside the budget.
        checkpoint_digest, checkpoint_bytes: SHA-256 and size of the patched checkpoint, once ready.
        problem_json: why it failed, or why no plan fits: a problem document.
    """

    __tablename__ = "plans"

    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=new_id)
    profile_id: Mapped[str] = mapped_column(ForeignKey("profiles.id"), index=True)
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"))
    state: Mapped[str] = mapped_column(String(16), default=PlanState.QUEUED)
    request_json: Mapped[str] = mapped_column(Text)
    budget_bytes: Mapped[int | None] = mapped_column(BigInteger)
    plan_json: Mapped[str | None] = mapped_column(Text)
    certificate_json: Mapped[str | None] = mapped_column(Text)
    checkpoint_digest: Mapped[str | None] = mapped_column(String(64))
    checkpoint_bytes: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    problem_json: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now, index=True)
