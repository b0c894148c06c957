"""What a plan or a profile is asked for with, as it comes in."""

from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Annotated, Literal, Self

from pydantic import (
    ConfigDict,
    Field,
    PositiveInt,
    StrictFloat,
    StrictInt,
    StrictStr,
    field_validator,
    model_validator,
)

from planner.errors import BadBudget
from planner.plan import TECHNIQUES
from planner.request import BudgetScope, Optimizer, PlanRequest, ProfileSettings, parse_budget
from service.body import Body

DIGEST_EXAMPLE = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


OptimizerName = Annotated[
    Literal["sgd", "adam", "adamw"], Field(description="sgd keeps nothing, with momentum one tensor a parameter; adam keeps two.")
]
Momentum = Annotated[float, Field(ge=0, lt=1, description="Of sgd.", examples=[0.9])]


def check_momentum(name: str, momentum: float) -> None:
    """
    Raises:
        ValueError: the optimizer takes none.
    """
    if momentum and name != "sgd":
        raise ValueError(f"momentum belongs to sgd; {name} has its own")


class OptimizerBody(Body):
    """The optimizer of the planned step; its state is part of the footprint."""

    name: OptimizerName = "sgd"
    momentum: Momentum = 0.0

    @model_validator(mode="after")
    def _momentum_is_of_sgd(self) -> Self:
        check_momentum(self.name, self.momentum)
        return self


class SettingsBody(Body):
    """What is measured, beside model and sample."""

    loss: str = Field(
        "cross_entropy", description="cross_entropy or mse (with the sample's targets), or output:NAME of a model that returns its loss."
    )
    batch_norm: Literal["frozen", "batch"] = Field(
        "frozen", description="frozen: running statistics, as with small batches; batch: the batch's own."
    )
    batch_size: PositiveInt | None = Field(None, description="Samples a step; by default all samples of the sample form one batch.")

    @property
    def settings(self) -> ProfileSettings:
        return ProfileSettings(self.loss, self.batch_norm, self.batch_size)


class ChoiceBody(Body):
    """What may be chosen, and what for, whatever the budget."""

    trainable: tuple[str, ...] = Field(("*",), min_length=1, description="Patterns of names of parameters that may train, with * and ?.")
    frozen: tuple[str, ...] = Field((), description="Patterns of names of parameters that may not train.", examples=[["features.1*"]])
    last: PositiveInt | None = Field(
        None, description="Only the last so many layers may train: operations with a weight, and what follows.", examples=[4]
    )
    techniques: tuple[str, ...] = Field(
        ("*",), description="Patterns of techniques that may be used beside keeping whole.", examples=[["mask", "hosvd"]]
    )
    max_slowdown: float | None = Field(None, ge=1, description="Most seconds of a step, in those of the plain step.", examples=[1.5])
    objective: Literal["energy", "relative"] = Field(
        "energy", description="What is kept most of: the energy of all gradients together, or of each parameter's its own share."
    )
    own_loop: bool = Field(False, description="Use only what lives in the module, for people with their own training loop.")

    @field_validator("techniques")
    @classmethod
    def _each_pattern_means_a_technique(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            if not any(fnmatchcase(technique, pattern) for technique in TECHNIQUES):
                raise ValueError(f"no technique is called {pattern!r}: there are {', '.join(TECHNIQUES)}")
        return patterns

    def request_without_budget(self, optimizer: Optimizer) -> PlanRequest:
        return PlanRequest(
            None,
            optimizer,
            self.trainable,
            self.techniques,
            own_loop=self.own_loop,
            frozen=self.frozen,
            last=self.last,
            max_slowdown=self.max_slowdown,
            objective=self.objective,
        )


class FrontierQuery(ChoiceBody):
    """A frontier to look along."""

    points: int = Field(24, ge=2, le=200, description="Budgets, from the least to the plain step's peak.")
    optimizer: OptimizerName = "sgd"
    momentum: Momentum = 0.0

    @model_validator(mode="after")
    def _momentum_is_of_sgd(self) -> Self:
        check_momentum(self.optimizer, self.momentum)
        return self

    @property
    def plan_request(self) -> PlanRequest:
        return self.request_without_budget(Optimizer(self.optimizer, self.momentum))


class PlanBody(SettingsBody, ChoiceBody):
    """A plan to make: for a stored profile, or for a model and a sample, each stored or sent along."""

    model_config = ConfigDict(
        json_schema_extra=lambda schema: schema.update(
            anyOf=[{"required": [name]} for name in ("budget", "device", "min_fidelity")], required=[]
        )
    )

    budget: StrictInt | StrictFloat | StrictStr | None = Field(
        None,
        description="Most bytes of the footprint at any moment: a number, one with a unit, or a share of the plain step's peak. Left out, "
        "the least that min_fidelity takes.",
        examples=["64 MiB", 67108864, "40%"],
    )
    headroom: StrictInt | StrictFloat | StrictStr | None = Field(
        None,
        description="Part of the budget that is kept free for what differs between batches: bytes, or a share of it.",
        examples=["5%", "2 MiB"],
    )
    optimizer: OptimizerBody = OptimizerBody()
    min_fidelity: float | None = Field(None, ge=0, le=1, description="Least fidelity (with objective relative: least score).")
    budget_scope: BudgetScope = Field(
        "training", description="What the budget is of: the footprint of the step, or the whole process that trains."
    )
    device: str | None = Field(
        None, description="A device, instead of a budget: its memory less what its system takes.", examples=["raspberry-pi-4b-2gb"]
    )
    profile: str | None = Field(None, description="A stored profile's id, instead of model, sample and settings.")
    model: str | None = Field(None, description="A stored model's id.", examples=[DIGEST_EXAMPLE])
    sample: str | None = Field(None, description="A stored sample's id.", examples=[DIGEST_EXAMPLE])

    @field_validator("budget", "headroom", mode="before")
    @classmethod
    def _is_an_amount(cls, amount: object) -> object:
        if isinstance(amount, bool) or not isinstance(amount, (int, float, str)):
            raise BadBudget(amount, "is not an amount")  # the problem of every budget that is none, whatever its type
        return amount

    @model_validator(mode="after")
    def _something_is_asked_for(self) -> Self:
        if self.budget is None and self.device is None and self.min_fidelity is None:
            raise ValueError("give a budget, a device, or the min_fidelity that the least budget is looked for")
        return self

    @model_validator(mode="after")
    def _profile_has_it_all(self) -> Self:
        twice = self.model_fields_set & {"model", "sample", "loss", "batch_norm", "batch_size"}
        if self.profile is not None and twice:
            raise ValueError(f"the profile says {', '.join(sorted(twice))} already; leave that out, or leave out the profile")
        return self

    @property
    def plan_request(self) -> PlanRequest:
        """
        Raises:
            BadBudget: the budget or the headroom is no amount of memory.
        """
        return replace(
            self.request_without_budget(Optimizer(self.optimizer.name, self.optimizer.momentum)),
            budget=parse_budget(str(self.budget)) if self.budget is not None else None,
            headroom=parse_budget(str(self.headroom)) if self.headroom is not None else None,
            min_fidelity=self.min_fidelity,
            budget_scope=self.budget_scope,
        )
