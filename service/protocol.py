"""What a server and the child process of one stage say to each other.

The child reads `task.json` in its folder, writes one JSON message a line, and leaves `result.json` there.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from planner.plan import Correction, Plan
from planner.profile import Profile
from planner.request import PlanRequest, ProfileSettings
from service.limits import Limits
from service.problems import ProblemDocument

TASK_FILE, RESULT_FILE = "task.json", "result.json"


@dataclass(frozen=True, slots=True)
class InspectSpec:
    """Write an uploaded model anew into `program`, and read that; the result is a `ModelSummary`."""

    model: Path
    program: Path
    stage: Literal["inspect"] = "inspect"


@dataclass(frozen=True, slots=True)
class ProfileSpec:
    """Measure a model on a sample; the result is a `Profile`."""

    model: Path
    sample: Path
    settings: ProfileSettings
    stage: Literal["profile"] = "profile"


@dataclass(frozen=True, slots=True)
class SolveSpec:
    """Choose a plan, with what measured steps told; the result is a `Plan`."""

    profile: Profile
    request: PlanRequest
    corrections: tuple[Correction, ...]
    stage: Literal["solve"] = "solve"


@dataclass(frozen=True, slots=True)
class CompareSpec:
    """Look for simpler ways beside a plan; the result is the `Plan` with these."""

    profile: Profile
    request: PlanRequest
    plan: Plan
    stage: Literal["compare"] = "compare"


@dataclass(frozen=True, slots=True)
class ProveSpec:
    """Patch a model as planned into `out`, and measure its step; the result is a `Proof`."""

    model: Path
    sample: Path
    profile: Profile
    plan: Plan
    out: Path
    stage: Literal["prove"] = "prove"


Spec = InspectSpec | ProfileSpec | SolveSpec | CompareSpec | ProveSpec


@dataclass(frozen=True, slots=True)
class Task:
    """A stage to run, and what its process takes upon itself before."""

    spec: Annotated[Spec, Field(discriminator="stage")]
    limits: Limits
    leave_network: bool


TASK: TypeAdapter[Task] = TypeAdapter(Task)


@dataclass(frozen=True, slots=True)
class ProgressMessage:
    """`fraction` of the stage is done."""

    fraction: float
    message: str
    kind: Literal["progress"] = "progress"


@dataclass(frozen=True, slots=True)
class ResultMessage:
    """The stage is done: its result is in `result.json`. `peak_bytes`: most memory that it, or a process it started, had."""

    peak_bytes: int
    kind: Literal["result"] = "result"


@dataclass(frozen=True, slots=True)
class ProblemMessage:
    """The stage failed."""

    problem: ProblemDocument
    kind: Literal["problem"] = "problem"


Message = ProgressMessage | ResultMessage | ProblemMessage
MESSAGE: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="kind")])
