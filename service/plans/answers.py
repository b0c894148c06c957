"""A plan as people and programs get it: over HTTP and from the command line, under the same names."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from models import PlanState
from planner.plan import ActivationChoice, Alternative, Certificate, ParameterChoice, Plan
from planner.plan import Footprint as PlannedFootprint
from planner.request import BudgetScope
from service.problems import ProblemDocument


class Footprint(BaseModel):
    """Bytes live at one moment of the step."""

    model_config = ConfigDict(frozen=True)

    phase: str = Field(description="forward, backward, or update (the optimizer's step).")
    operation: str
    static_bytes: int = Field(description="Parameters, buffers, gradients, optimizer state and the batch.")
    saved_bytes: int = Field(description="Activations held for the backward pass.")
    transient_bytes: int = Field(description="What the running operation needs.")
    saved_by_technique: dict[str, int] = Field(default_factory=dict, description="The saved bytes, by the technique that holds them.")

    @classmethod
    def of(cls, footprint: PlannedFootprint) -> "Footprint":
        return cls(
            phase=footprint.moment.phase,
            operation=footprint.moment.operation,
            static_bytes=footprint.static_bytes,
            saved_bytes=footprint.saved_bytes,
            transient_bytes=footprint.transient_bytes,
            saved_by_technique=footprint.saved_by_technique,
        )


class PlanContent(BaseModel):
    """What a plan says, as far as it has come; the rest is null."""

    model_config = ConfigDict(frozen=True)

    state: PlanState = Field(description="ready: certificate.measured_peak_bytes ≤ budget_bytes.")
    budget_bytes: int | None = Field(None, description="Most bytes the footprint may reach at any moment of the step.")
    headroom_bytes: int | None = Field(None, description="What was asked for beyond that, and is kept free.")
    budget_scope: BudgetScope | None = Field(None, description="training: of the footprint; process: of the whole process.")
    runtime_bytes: int | None = Field(None, description="Of a budget of the whole process, what is not the footprint's.")
    fidelity: float | None = Field(None, description="1 − Σ‖g−ĝ‖² / Σ‖g‖² over all trainable parameters, as planned.", examples=[0.998])
    fidelity_range: tuple[float, float] | None = Field(None, description="The lowest and the highest of the sample's batches, as planned.")
    objective: str | None = Field(None, description="What it was chosen for.")
    score: float | None = Field(
        None, description="Of the objective: the fidelity for energy, the mean of all parameters' own for relative."
    )
    bound: float | None = Field(None, description="The highest score that any plan of this menu could have inside the budget, as proved.")
    gap: float | None = Field(None, description="bound − score.")
    predicted_peak_bytes: int | None = None
    footprint: Footprint | None = Field(None, description="At the predicted peak.")
    micro_batch: int | None = Field(None, description="Samples that go through the model at a time.")
    early_updates: bool | None = Field(None, description="Whether each parameter is updated as soon as its gradient is complete.")
    splits: tuple[str, ...] | None = Field(
        None,
        description="Operations that divide the model into segments, in order; all segments but the last run twice. Empty: it is not.",
    )
    slice: int | None = Field(None, description="Samples at a time up to the last split.")
    predicted_seconds: float | None = Field(None, description="Of a step, from the profile.")
    slowdown: float | None = Field(None, description="The same in seconds of the plain step, from the profile.")
    parameters: tuple[ParameterChoice, ...] | None = Field(None, description="Which of them train.")
    activations: tuple[ActivationChoice, ...] | None = Field(None, description="How each is held for the backward pass.")
    timeline: tuple[Footprint, ...] | None = Field(None, description="Predicted, at every moment of the step.")
    solve_seconds: float | None = None
    variables: int | None = Field(None, description="Of the integer program of the plan's schedule.")
    alternatives: tuple[Alternative, ...] | None = Field(None, description="Simpler ways in the same budget; with the certificate.")
    certificate: Certificate | None = Field(None, description="What the patched model's step really took, beside the plain model's.")
    least_budget_bytes: int | None = Field(None, description="When infeasible: the smallest budget that a plan was found for.")
    binding: dict[str, Any] | None = Field(None, description="When infeasible: the moment of that plan's peak, and what is live there.")
    suggestions: list[dict[str, Any]] | None = Field(None, description="When infeasible: the cheapest changes that would fit.")
    problem: dict[str, Any] | None = Field(None, description="When failed or infeasible: why, as a problem document.")


class PlanOrigin(BaseModel):
    """Where a plan came from."""

    model_config = ConfigDict(frozen=True)

    id: str
    model: str
    sample: str
    profile: str
    job: str | None = Field(description="The job that carries it on; null if none was needed.")
    created_at: datetime


class PlanAnswer(PlanContent, PlanOrigin):
    """A plan, as far as it has come."""


class PlanSummary(BaseModel):
    """A plan in a list."""

    model_config = ConfigDict(frozen=True)

    id: str
    state: PlanState
    profile: str
    budget_bytes: int | None
    created_at: datetime


class PlanList(BaseModel):
    """Plans, newest first."""

    model_config = ConfigDict(frozen=True)

    plans: tuple[PlanSummary, ...]


def plan_content(
    state: PlanState, budget_bytes: int | None, plan: Plan | None, certificate: Certificate | None, problem: ProblemDocument | None
) -> dict[str, Any]:
    """The members of a `PlanContent`."""
    content: dict[str, Any] = {"state": state, "budget_bytes": budget_bytes, "certificate": certificate}
    if plan is not None:
        content |= {
            "budget_bytes": plan.budget_bytes,
            "fidelity": plan.fidelity,
            "fidelity_range": plan.fidelity_range,
            "headroom_bytes": plan.headroom_bytes,
            "budget_scope": plan.budget_scope,
            "runtime_bytes": plan.runtime_bytes if plan.budget_scope == "process" else None,
            "objective": plan.objective,
            "score": plan.score,
            "bound": plan.bound,
            "gap": plan.gap,
            "predicted_peak_bytes": plan.predicted_peak_bytes,
            "footprint": Footprint.of(plan.peak),
            "micro_batch": plan.schedule.micro_batch,
            "early_updates": plan.schedule.early_updates,
            "splits": plan.schedule.splits,
            "slice": plan.schedule.slice or None,
            "predicted_seconds": plan.predicted_seconds,
            "slowdown": plan.slowdown,
            "parameters": plan.parameters,
            "activations": plan.activations,
            "timeline": tuple(Footprint.of(footprint) for footprint in plan.timeline),
            "solve_seconds": plan.solve_seconds,
            "variables": plan.variables,
            "alternatives": plan.alternatives or None,
        }
    if problem is not None:
        content["problem"] = problem.as_json()
        if state == PlanState.INFEASIBLE:
            content |= {name: problem.facts.get(name) for name in ("least_budget_bytes", "binding", "suggestions")}
    return content
