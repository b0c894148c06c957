"""The frontier of a stored profile: what is to be had at every budget."""

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from planner.plan import Schedule

if TYPE_CHECKING:
    from planner.frontier import FrontierPoint as FoundPoint  # with the solver, which a server that solves nothing yet does without


class FrontierPoint(BaseModel):
    """One budget and the best plan found in it, as predicted."""

    model_config = ConfigDict(frozen=True)

    budget_bytes: int
    predicted_peak_bytes: int
    fidelity: float = Field(description="1 − Σ‖g−ĝ‖² / Σ‖g‖² over all trainable parameters.")
    score: float = Field(description="Of the objective.")
    bound: float = Field(description="No plan in this budget has a higher score, as proved.")
    slowdown: float = Field(description="Seconds of a step, in those of the plain step.")
    schedule: Schedule
    trained: int = Field(description="Parameters that train.")
    held_bytes: dict[str, int] = Field(description="What the activations of each technique take.")
    changes: tuple[str, ...] = Field(description="What differs from the point before.")

    @classmethod
    def of(cls, point: "FoundPoint") -> "FrontierPoint":
        return cls(**{name: getattr(point, name) for name in cls.model_fields})


class FrontierAnswer(BaseModel):
    """From the least budget that anything fits to the plain step's peak."""

    model_config = ConfigDict(frozen=True)

    points: tuple[FrontierPoint, ...]
