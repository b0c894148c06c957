"""Every way a plan can fail, each with the facts as attributes and the next step in words.

PlannerError
├── BadRequest            the request itself is wrong
│   ├── BadBudget           not an amount of bytes, nor a share of the plain step
│   ├── UnknownLoss         no such loss, or no such output
│   ├── NothingTrainable    no parameter matches `trainable`
│   └── NothingFrozen       no parameter matches a pattern of `frozen`
├── BadModel              the program cannot be read or planned
│   └── UnsupportedOperation  one operation cannot be part of a training step
├── BadSample             the sample does not fit the model, or holds NaN
├── InfeasibleBudget      no plan fits; carries the least budget and what binds
└── UnverifiedPlan        measured steps stayed over the budget after every replan
"""

from collections.abc import Mapping
from typing import ClassVar


class PlannerError(Exception):
    """Base of all: `kind` is stable and names the error; `facts` are its members in an answer."""

    kind: ClassVar[str] = "planner-error"
    title: ClassVar[str] = "The plan could not be made"

    def __init__(self, message: str, **facts: object) -> None:
        self.facts: Mapping[str, object] = facts
        super().__init__(message)


class BadRequest(PlannerError):
    """The request itself is wrong."""

    kind, title = "bad-request", "The request cannot be planned"


class BadBudget(BadRequest):
    """The budget is no amount of bytes and no share of the plain step's peak."""

    kind, title = "bad-budget", "The budget is not an amount of memory"

    def __init__(self, budget: object, reason: str) -> None:
        super().__init__(
            f'budget {budget!r} {reason}. Give bytes (67108864), bytes with a unit ("64 MiB", "1.5 GB"; MiB = 1024² '
            'bytes, MB = 1000² bytes), or a share of the plain step\'s peak ("40%").',
            budget=str(budget),
        )


class UnknownLoss(BadRequest):
    """The loss is not one of those known, or names an output that the model does not have."""

    kind, title = "unknown-loss", "The loss is not known"

    def __init__(self, loss: str, outputs: tuple[str, ...] = ()) -> None:
        named = f" This model's outputs: {', '.join(outputs)}." if outputs else ""
        super().__init__(
            f"loss {loss!r} is not known. Use 'cross_entropy', 'mse', or 'output:NAME' for a model that returns its own loss.{named}",
            loss=loss,
            outputs=list(outputs),
        )


def _matched(names: tuple[str, ...]) -> str:
    """What patterns of a request are matched against."""
    some = f"{', '.join(names[:6])}{', …' if len(names) > 6 else ''}"
    return f"Patterns are matched against whole names, with * and ?; this model has {some}."


class NothingTrainable(BadRequest):
    """No parameter that gets a gradient matches the patterns of `trainable`."""

    kind, title = "nothing-trainable", "No parameter matches `trainable`"

    def __init__(self, patterns: tuple[str, ...], names: tuple[str, ...]) -> None:
        super().__init__(
            f"no parameter matches trainable={list(patterns)}. {_matched(names)}",
            trainable=list(patterns),
        )


class NothingFrozen(BadRequest):
    """No parameter matches a pattern of `frozen`: what was to stay as it is would train."""

    kind, title = "nothing-frozen", "No parameter matches a pattern of `frozen`"

    def __init__(self, pattern: str, names: tuple[str, ...]) -> None:
        super().__init__(
            f"no parameter matches {pattern!r} of `frozen`. {_matched(names)}",
            frozen=pattern,
        )


class BadModel(PlannerError):
    """The program cannot be read, or is not one that trains."""

    kind, title = "bad-model", "The model cannot be read"


class UnsupportedOperation(BadModel):
    """One operation of the program cannot be part of a planned training step."""

    kind, title = "unsupported-operation", "An operation cannot be planned"

    def __init__(self, operation: str, target: str, reason: str, remedy: str, source: str | None) -> None:
        where = f" (from {source})" if source else ""
        super().__init__(
            f"operation {operation!r} ({target}){where} {reason}. {remedy}",
            operation=operation,
            target=target,
            source=source,
        )


class BadSample(PlannerError):
    """The sample does not fit the model, or holds values no gradient can come from."""

    kind, title = "bad-sample", "The sample does not fit the model"


class InfeasibleBudget(PlannerError):
    """No plan fits: not even the one that trains least and holds least."""

    kind, title = "infeasible-budget", "No plan fits the budget"

    def __init__(
        self, budget_bytes: int, least_budget_bytes: int, binding: Mapping[str, object], suggestions: tuple[Mapping[str, object], ...]
    ) -> None:
        self.budget_bytes, self.least_budget_bytes = budget_bytes, least_budget_bytes
        self.binding, self.suggestions = binding, suggestions
        changes = f", or change the request: {suggestions[0]['change']}" if suggestions else ": no change of the request was found to fit"
        super().__init__(
            f"no plan fits in {budget_bytes:,} bytes: the smallest found needs {least_budget_bytes:,}, at {binding.get('phase')} of "
            f"{binding.get('operation')}. Raise the budget{changes}.",
            budget_bytes=budget_bytes,
            least_budget_bytes=least_budget_bytes,
            binding=dict(binding),
            suggestions=[dict(s) for s in suggestions],
        )


class UnverifiedPlan(PlannerError):
    """Measured steps stayed over the budget after every replan."""

    kind, title = "unverified-plan", "No plan was proved to fit"

    def __init__(self, budget_bytes: int, measured_peak_bytes: int, attempts: int) -> None:
        super().__init__(
            f"after {attempts} plans the measured peak is still {measured_peak_bytes:,} bytes of {budget_bytes:,}. "
            "Raise the budget by a few per cent.",
            budget_bytes=budget_bytes,
            measured_peak_bytes=measured_peak_bytes,
            attempts=attempts,
        )
