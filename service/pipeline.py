"""The way from a profile to a verified checkpoint: solve, patch, measure, and again with what was learned while it stays over the budget.

The job runner and the command line both go this way. What is worth keeping is told to an `Observer` as it comes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from planner.errors import UnverifiedPlan
from planner.plan import Certificate, Correction, Plan
from planner.profile import Profile
from planner.request import PlanRequest, ProfileSettings
from service.stage_process import Stages

Stage = Literal["profiling", "solving", "patching", "verifying"]
ATTEMPTS = 5
SETTLED = 1e-3  # a gap that a search would prove, too


class Observer(Protocol):
    """Hears how far the work is."""

    def progress(self, stage: Stage, fraction: float, message: str) -> None:
        """`fraction` of `stage` is done, 0 to 1."""

    def solved(self, plan: Plan) -> None:
        """A plan was chosen; not yet a verified one."""


@dataclass(frozen=True, slots=True)
class VerifiedPlan:
    """A plan whose measured step stayed inside the budget, and the checkpoint that was measured."""

    plan: Plan
    certificate: Certificate
    checkpoint: Path


def measure(stages: Stages, model: Path, sample: Path, settings: ProfileSettings, observer: Observer) -> Profile:
    """A profile of the model on the sample.

    Raises:
        StageProblem: it cannot be measured; its document says why.
    """
    observer.progress("profiling", 0.0, "opening the model")
    return stages.profile(model, sample, settings, lambda fraction, message: observer.progress("profiling", fraction, message))


def prove(
    stages: Stages, model: Path, sample: Path, profile: Profile, request: PlanRequest, observer: Observer, plan: Plan | None = None
) -> VerifiedPlan:
    """A verified plan for the request's budget. `plan`: one that was found quickly, to begin with, unless a search may find a better.

    Raises:
        InfeasibleBudget: no plan fits the budget.
        UnverifiedPlan: measured steps stayed over it after `ATTEMPTS` plans.
        StageProblem: the plan cannot be patched or measured.
    """
    corrections: tuple[Correction, ...] = ()
    if plan is not None and plan.gap > SETTLED:
        plan = None
    checkpoint = stages.folder / "checkpoint.pt2"
    for attempt in range(1, ATTEMPTS + 1):
        if plan is None:
            observer.progress("solving", 0.0, f"choosing a plan{_which(attempt)}")
            plan = stages.solve(profile, request, corrections)
            observer.solved(plan)
        observer.progress("patching", 0.0, f"patching the model{_which(attempt)}")
        checkpoint.unlink(missing_ok=True)
        proof = stages.prove(model, sample, profile, plan, checkpoint, _proving(observer, checkpoint))
        if proof.certificate is not None:
            observer.progress("verifying", 0.99, "looking for simpler ways")
            return VerifiedPlan(stages.compare(profile, request, plan), proof.certificate, checkpoint)
        corrections += proof.corrections
        budget_bytes, plan = plan.budget_bytes, None
    raise UnverifiedPlan(budget_bytes, proof.measured_peak_bytes, ATTEMPTS)


def _proving(observer: Observer, checkpoint: Path) -> Callable[[float, str], None]:
    """Progress of patching until the checkpoint is there, of verifying from then on: one process does both."""
    return lambda fraction, message: observer.progress("verifying" if checkpoint.exists() else "patching", fraction, message)


def _which(attempt: int) -> str:
    return "" if attempt == 1 else f" (attempt {attempt} of {ATTEMPTS})"
