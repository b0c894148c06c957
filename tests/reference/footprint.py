"""The footprint of a plan, moment by moment, in the plainest words; and every plan there is."""

from collections.abc import Iterator
from itertools import chain, combinations, product

from planner.profile import Activation, Moment, Profile
from planner.request import Optimizer
from planner.timeline import Choices


def needs_gradient(profile: Profile, trained: frozenset[str], operation: int) -> bool:
    it = profile.operations[operation]
    return any(p in trained for p in it.parameters) or any(needs_gradient(profile, trained, i) for i in it.inputs)


def needed_holders(profile: Profile, trained: frozenset[str], activation: Activation) -> list[int]:
    return [
        h
        for h, holder in enumerate(activation.holders)
        if (holder.parameter in trained if holder.needed_for == "weight" else needs_gradient(profile, trained, holder.operation))
    ]


def footprint(profile: Profile, choices: Choices, optimizer: Optimizer) -> dict[Moment, int]:
    """Bytes at every moment: walk through the step and add up what lives."""
    last = len(profile.operations) - 1
    moments: list[tuple[Moment, float]] = []  # with a time: forward 0, 1, 2, ...; backward after it, counted down
    for i, operation in enumerate(profile.operations):
        if any(i == min(a.holders[h].operation for h in f.holders) for a in profile.activations for f in a.forms):
            moments.append((Moment("compress", operation.name), i - 0.5))
        moments.append((Moment("forward", operation.name), i))
    moments += [(Moment("backward", profile.operations[i].name), 2 * last + 1 - i) for i in range(last, -1, -1)]
    moments.append((Moment("update", "optimizer"), 2 * last + 2))

    def backward(operation: int) -> float:
        return 2 * last + 1 - operation

    return {moment: _live(profile, choices, optimizer, moment, time, backward) for moment, time in moments}


def _live(profile, choices, optimizer, moment, time, backward) -> int:  # type: ignore[no-untyped-def]
    trained = choices.trained
    total = profile.static_bytes
    for parameter in profile.parameters:
        if parameter.name in trained:
            total += optimizer.states * parameter.bytes
            readers = [i for i, operation in enumerate(profile.operations) if parameter.name in operation.parameters]
            if readers and time >= backward(max(readers)):
                total += parameter.bytes
    total += sum(size for size, born, last_use in profile.storages if born <= time <= last_use)
    for i, operation in enumerate(profile.operations):
        passes = needs_gradient(profile, trained, i)
        total += operation.forward_bytes * (time == i)
        total += operation.backward_bytes * (passes and time == backward(i))
        total += operation.internal_bytes * (passes and i < time <= backward(i))
    for a, activation in enumerate(profile.activations):
        if a in choices.whole and activation.last_use < time <= backward(min(h.operation for h in activation.holders)):
            total += activation.bytes
        for f, form in enumerate(activation.forms):
            if (a, f) in choices.forms:
                option = form.options[choices.forms[a, f]]
                holders = [activation.holders[h].operation for h in form.holders]
                total += option.held_bytes * (min(holders) - 0.5 <= time <= backward(min(holders)))
                total += option.compress_bytes * (time == min(holders) - 0.5)
                total += option.restore_bytes * sum(time == backward(h) for h in holders)
    if moment.phase == "update" and optimizer.states == 2:
        total += 2 * max(parameter.bytes for parameter in profile.parameters)
    return int(total)


def every_plan(profile: Profile, trainable: list[str]) -> Iterator[Choices]:
    """All choices in which something trains and every holder has what it needs, and nothing is held twice."""
    subsets = chain.from_iterable(combinations(trainable, n) for n in range(1, len(trainable) + 1))
    for trained in map(frozenset, subsets):
        ways = [list(_ways(profile, trained, a)) for a in range(len(profile.activations))]
        for combination in product(*ways):
            whole = frozenset(a for a, way in enumerate(combination) if way is None)
            yield Choices(trained, whole, {(a, f): o for a, way in enumerate(combination) if way is not None for f, o in way.items()})


def _ways(profile: Profile, trained: frozenset[str], a: int) -> Iterator[dict[int, int] | None]:
    activation = profile.activations[a]
    needed = set(needed_holders(profile, trained, activation))
    if not needed:
        yield {}
        return
    yield None
    used = [f for f, form in enumerate(activation.forms) if needed & set(form.holders)]
    if needed <= {h for f in used for h in activation.forms[f].holders}:
        for options in product(*(range(len(activation.forms[f].options)) for f in used)):
            yield dict(zip(used, options, strict=True))


def lost_share(profile: Profile, trainable: list[str], choices: Choices) -> float:
    """Share of the trainable parameters' energy that is lost."""
    energy = {p.name: p.gradient_energy for p in profile.parameters if p.name in trainable}
    lost = 0.0
    for name in energy:
        if name not in choices.trained:
            lost += energy[name]
            continue
        for (a, f), o in choices.forms.items():
            lost += min(energy[name], profile.activations[a].forms[f].options[o].lost_energy.get(name, 0.0))
    return lost / sum(energy.values())
