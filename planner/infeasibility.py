"""What is said where nothing fits: the least budget, the moment that binds, and the changes that would fit, each tried."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from planner.errors import InfeasibleBudget
from planner.live import live_tensors
from planner.profile import Profile
from planner.request import Optimizer, PlanRequest
from planner.schedules import Programs
from planner.search import least_budget, limits_of, search
from planner.trainable import trainable, weights

MOST = 5  # suggestions
NOTABLE = 0.05  # more fidelity of all changes than of the best: all are suggested, too
ROOM = 50  # of the budget, one part in so many is left for what the measured step takes beyond the prediction
ROOM_OF_LOSS = 0.8  # of the loss that a request allows, as much may be predicted for a batch without a profile of its own


@dataclass(frozen=True, slots=True)
class Change:
    """One change of a request or of the batch, as a person would ask for it.

    Attributes:
        fields: of the request, with their new values.
        profile: of a smaller batch; None where the batch stays.
    """

    name: str
    value: object
    fields: dict[str, Any]
    profile: Profile | None = None


def infeasible(programs: Programs, budget_bytes: int, runtime_bytes: int = 0) -> InfeasibleBudget:
    """The answer to a budget that nothing fits. `runtime_bytes`: of the whole process's budget, what the footprint cannot have."""
    smallest = least_budget(programs, limits_of(programs, budget_bytes))
    assert smallest is not None, "the plain step keeps to every other limit, at some peak"
    solution, least_bytes = smallest
    timeline = solution.program.timeline
    peak = max(timeline.predict(solution.choices), key=lambda footprint: footprint.total_bytes)
    binding = {
        "phase": peak.moment.phase,
        "operation": peak.moment.operation,
        "static_bytes": peak.static_bytes,
        "saved_bytes": peak.saved_bytes,
        "transient_bytes": peak.transient_bytes,
        "tensors": live_tensors(timeline, solution.choices, peak),
    }
    if runtime_bytes:
        binding["runtime_bytes"] = runtime_bytes
    return InfeasibleBudget(budget_bytes + runtime_bytes, least_bytes + runtime_bytes, binding, tuple(_suggestions(programs, budget_bytes)))


def _suggestions(programs: Programs, budget_bytes: int) -> list[dict[str, object]]:
    """Changes that fit, one by one; where none does, from the cheapest on together, until they fit. None where not even all do."""
    changes = [*_changes(programs.profile, programs.request)]
    together = _tried(programs, changes, budget_bytes) if changes else None
    if together is None:
        return []
    alone = [together] if len(changes) == 1 else [_tried(programs, [change], budget_bytes) for change in changes]
    alone += [_tried(programs, [change], budget_bytes) for change in _freezing(programs, budget_bytes)]
    tried = sorted((made for made in alone if made is not None), key=_fidelity, reverse=True)
    if not tried:
        some = (_tried(programs, changes[:count], budget_bytes) for count in range(2, len(changes)))
        return [next((made for made in some if made is not None), together)]
    if _fidelity(together) > _fidelity(tried[0]) + NOTABLE:
        tried.insert(0, together)
    return tried[:MOST]


def _changes(profile: Profile, request: PlanRequest) -> Iterator[Change]:
    if request.max_slowdown is not None:
        yield Change("max_slowdown", None, {"max_slowdown": None})
    if request.min_fidelity is not None:
        yield Change("min_fidelity", None, {"min_fidelity": None})
    if request.own_loop:
        yield Change("own_loop", False, {"own_loop": False})
    if request.techniques != ("*",):
        yield Change("techniques", ["*"], {"techniques": ("*",)})
    if request.optimizer.states == 2:
        yield Change("optimizer", {"name": "sgd", "momentum": 0.9}, {"optimizer": Optimizer("sgd", 0.9)})
    if request.optimizer.states:
        yield Change("optimizer", {"name": "sgd", "momentum": 0.0}, {"optimizer": Optimizer()})
    for step in profile.steps[1:]:
        yield Change("batch_size", step.batch_size, {}, profile.with_batch_of(step.batch_size))


def _freezing(programs: Programs, budget_bytes: int) -> Iterator[Change]:
    """Where a fidelity is insisted on: not to train what the best plan without it freezes, so that it is one of the rest alone."""
    request = programs.request
    if request.min_fidelity is None:
        return
    free = programs.within(replace(request, min_fidelity=None))
    found = search(free, limits_of(free, budget_bytes - budget_bytes // ROOM), 0.0)
    if found is not None and found.choices.trained:
        names = trainable(programs.profile, request) - found.choices.trained
        if names:
            frozen = [*request.frozen, *sorted(names)]
            yield Change("frozen", frozen, {"frozen": tuple(frozen)})


def _tried(programs: Programs, changes: list[Change], budget_bytes: int) -> dict[str, object] | None:
    """The changes, one on top of the other, where they fit with room to spare: what they are, the least budget then, and the fidelity
    in this one.
    """
    request, profile = programs.request, programs.profile
    for change in changes:
        request, profile = replace(request, **change.fields), change.profile or profile
    if profile is programs.profile and request.without_limits == programs.request.without_limits:
        changed = programs.within(request)
    else:
        changed = Programs(profile, request, weights(profile, request))
    limits = limits_of(changed, budget_bytes - budget_bytes // ROOM)
    if profile is not programs.profile:  # one of its own will come, in which other gradients lose a little more or less
        limits = replace(limits, loss=ROOM_OF_LOSS * limits.loss)
    solution = search(changed, limits, 0.0)
    if solution is None:
        return None
    values = {change.name: _value(change, solution.loss, solution.seconds / changed.plain_seconds) for change in changes}
    lifted = {name: value for name, value in values.items() if name in ("min_fidelity", "max_slowdown")}
    followed = changed.within(replace(request, **lifted))  # type: ignore[arg-type]
    smallest = least_budget(followed, limits_of(followed, budget_bytes))
    return {
        "change": " and ".join(_words(name, value) for name, value in values.items()),
        "values": values,
        "least_budget_bytes": smallest[1] if smallest is not None else budget_bytes,
        "fidelity": 1.0 - solution.loss,
    }


def _fidelity(made: dict[str, object]) -> float:
    return float(made["fidelity"])  # type: ignore[arg-type]


def _value(change: Change, loss: float, slowdown: float) -> object:
    """A limit that was lifted gets the value that the plan then has."""
    if change.name == "min_fidelity":
        return max(0.0, round(1.0 - loss - 1e-3, 3))
    if change.name == "max_slowdown":
        return round(slowdown + 0.05, 2)
    return change.value


def _words(name: str, value: object) -> str:
    if name == "optimizer" and isinstance(value, dict):
        return f"optimizer sgd {'with' if value['momentum'] else 'without'} momentum"
    if name == "frozen" and isinstance(value, list):
        return f"not training {len(value)} parameters"
    if name == "batch_size":
        return f"batch_size {value}, with a profile of that"
    return f"{name} {value}"
