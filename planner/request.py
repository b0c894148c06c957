"""What a plan is asked for: a budget in the units people write, an optimizer, what may train and how it may be held."""

import re
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from fnmatch import fnmatchcase
from math import ceil
from typing import Literal

from planner.errors import BadBudget

BudgetScope = Literal["training", "process"]
UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30, "k": 2**10, "m": 2**20, "g": 2**30}


@dataclass(frozen=True, slots=True)
class Budget:
    """Most bytes of the footprint at any moment of the step: an amount, or a share of the plain step's peak."""

    amount_bytes: int | None = None
    share: float | None = None

    def in_bytes(self, plain_peak_bytes: int) -> int:
        """The budget in bytes, given the plain step's peak that a share refers to."""
        return self.amount_bytes if self.amount_bytes is not None else int(plain_peak_bytes * (self.share or 0.0))


def parse_budget(text: str | int) -> Budget:
    """Read `67108864`, `"64 MiB"`, `"1.5GB"` or `"40%"`.

    Raises:
        BadBudget: no number, an unknown unit, or nothing left of it (0, negative).
    """
    if isinstance(text, bool):
        raise BadBudget(text, "is not an amount")
    match = re.fullmatch(r"\s*([+-]?[0-9][0-9_,]*(?:\.[0-9]+)?(?:e[+-]?[0-9]{1,3})?)\s*([a-z%]*)\s*", str(text), flags=re.IGNORECASE)
    if match is None:
        raise BadBudget(text, "is not a number with a unit")
    unit = match[2].lower()
    try:
        number = Decimal(match[1].replace("_", "").replace(",", ""))
    except InvalidOperation:
        raise BadBudget(text, "is not a number with a unit") from None
    if number <= 0:
        raise BadBudget(text, "must be greater than 0")
    if unit == "%":
        return Budget(share=float(number) / 100)
    if unit not in UNITS:
        raise BadBudget(text, f"has the unknown unit {match[2]!r}")
    if number * UNITS[unit] > 2**62:
        raise BadBudget(text, "is more than any device has")
    return Budget(amount_bytes=ceil(number * UNITS[unit]))


@dataclass(frozen=True, slots=True)
class Optimizer:
    """The optimizer of the planned step; its state is part of the footprint."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    momentum: float = 0.0

    @property
    def states(self) -> int:
        """Tensors of a parameter's size that it keeps for each trained parameter (SGD 0, with momentum 1, Adam 2)."""
        return 2 if self.name != "sgd" else int(self.momentum != 0)


@dataclass(frozen=True, slots=True)
class ProfileSettings:
    """What a profile depends on, beside model and sample.

    `batch_size` None: all samples form one batch.
    """

    loss: str = "cross_entropy"
    batch_norm: Literal["frozen", "batch"] = "frozen"
    batch_size: int | None = None


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """One budget and what may be done to meet it. Patterns are matched against whole names, with * and ?.

    Attributes:
        budget: None asks for the least that `min_fidelity` takes.
        trainable: parameters that may train, less `frozen`, and of the `last` layers alone if that is given. A layer is an operation
            with a weight of two or more axes; what has a parameter after the first of them belongs to them.
        max_slowdown: most seconds of the step, in those of the plain one.
        objective: what little is lost of: `energy` (of all gradients together) or `relative` (each parameter's own counts alike).
        headroom: part of the budget that is kept free, for what differs between batches.
        budget_scope: whether the budget is of the footprint, or of the whole process, runtime and allocator included.
    """

    budget: Budget | None
    optimizer: Optimizer = Optimizer()
    trainable: tuple[str, ...] = ("*",)
    techniques: tuple[str, ...] = ("*",)
    own_loop: bool = False
    frozen: tuple[str, ...] = ()
    last: int | None = None
    max_slowdown: float | None = None
    min_fidelity: float | None = None
    objective: Literal["energy", "relative"] = "energy"
    headroom: Budget | None = None
    budget_scope: BudgetScope = "training"

    @property
    def without_limits(self) -> "PlanRequest":
        """What it allows, and wants little lost of, whatever the budget and the other limits are."""
        return replace(self, budget=None, headroom=None, budget_scope="training", min_fidelity=None, max_slowdown=None)

    def may_train(self, parameter: str) -> bool:
        """By its name alone; `last` is the profile's to say."""
        return _matches(parameter, self.trainable) and not _matches(parameter, self.frozen)

    def frozen_in_vain(self, parameters: tuple[str, ...]) -> list[str]:
        """Patterns of `frozen` that match none of these."""
        return [pattern for pattern in self.frozen if not any(_matches(name, (pattern,)) for name in parameters)]

    def may_use(self, technique: str) -> bool:
        """Whether a technique of the menu is allowed. `keep` always is: not to compress needs no leave."""
        return technique == "keep" or _matches(technique, self.techniques)

    def budget_bytes(self, plain_peak_bytes: int) -> int | None:
        """What the footprint may reach: the budget less the headroom. None where the least is asked for.

        Raises:
            BadBudget: the headroom leaves nothing.
        """
        if self.budget is None:
            return None
        whole = self.budget.in_bytes(plain_peak_bytes)
        left = whole - (self.headroom.in_bytes(whole) if self.headroom is not None else 0)
        if left <= 0:
            raise BadBudget(f"{whole} bytes", "is all headroom: nothing is left for the step")
        return left


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
