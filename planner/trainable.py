"""Which parameters a request lets train, and how much each counts."""

from planner.errors import NothingFrozen, NothingTrainable
from planner.profile import Profile
from planner.request import PlanRequest


def trainable(profile: Profile, request: PlanRequest) -> frozenset[str]:
    """Names of the parameters that may train, with or without a gradient."""
    names = {parameter.name for parameter in profile.parameters if request.may_train(parameter.name)}
    return frozenset(names if request.last is None else names & last_layers(profile, request.last))


def check_patterns(names: tuple[str, ...], request: PlanRequest) -> None:
    """
    Raises:
        NothingTrainable: no parameter of these names may train.
        NothingFrozen: a pattern of what may not train matches none.
    """
    if not any(request.may_train(name) for name in names):
        raise NothingTrainable(request.trainable, names)
    if in_vain := request.frozen_in_vain(names):
        raise NothingFrozen(in_vain[0], names)


def layers(profile: Profile) -> list[int]:
    """The operations that have a weight, of two or more axes."""
    names = {parameter.name for parameter in profile.parameters if len(parameter.shape) > 1}
    return [i for i, operation in enumerate(profile.whole.operations) if names & set(operation.parameters)]


def last_layers(profile: Profile, count: int) -> frozenset[str]:
    """Parameters of the last layers, and of what comes after the first of them."""
    every, operations = layers(profile), profile.whole.operations
    first = every[-count] if count < len(every) else 0
    return frozenset(name for operation in operations[first:] for name in operation.parameters)


def weights(profile: Profile, request: PlanRequest) -> dict[str, float]:
    """Of each parameter with a gradient that may train, its weight in the objective; they sum to 1.

    Raises:
        NothingTrainable: there is none.
        NothingFrozen: a pattern of `frozen` matches none.
    """
    check_patterns(tuple(parameter.name for parameter in profile.parameters), request)
    allowed = trainable(profile, request)
    energies = {p.name: p.gradient_energy for p in profile.parameters if p.name in allowed and p.gradient_energy > 0}
    if not energies:
        raise NothingTrainable(request.trainable, tuple(p.name for p in profile.parameters))
    if request.objective == "relative":
        return dict.fromkeys(energies, 1 / len(energies))
    total = sum(energies.values())
    return {name: energy / total for name, energy in energies.items()}
