"""The footprint of a plan, moment by moment, in the plainest words; and every plan there is."""

from collections.abc import Iterator
from itertools import chain, combinations, product

from planner.plan import Schedule
from planner.profile import Activation, Moment, Option, Profile, Step
from planner.request import Optimizer
from planner.timeline import Choices


def step_of(profile: Profile, schedule: Schedule) -> Step:
    return {step.batch_size: step for step in profile.steps}[schedule.micro_batch]


def needs_gradient(step: Step, trained: frozenset[str], operation: int) -> bool:
    it = step.operations[operation]
    return any(p in trained for p in it.parameters) or any(needs_gradient(step, trained, i) for i in it.inputs)


def needed_holders(step: Step, trained: frozenset[str], activation: Activation) -> list[int]:
    return [
        h
        for h, holder in enumerate(activation.holders)
        if (holder.parameter in trained if holder.needed_for == "weight" else needs_gradient(step, trained, holder.operation))
    ]


def footprint(profile: Profile, choices: Choices, optimizer: Optimizer, schedule: Schedule) -> dict[Moment, int]:
    """Bytes at every moment: walk through the step and add up what lives."""
    step = step_of(profile, schedule)
    last = len(step.operations) - 1
    moments: list[tuple[Moment, float]] = []  # with a time: forward 0, 1, 2, ...; backward after it, counted down
    for i, operation in enumerate(step.operations):
        if any(i == min(a.holders[h].operation for h in f.holders) for a in step.activations for f in a.forms):
            moments.append((Moment("compress", operation.name), i - 0.5))
        moments.append((Moment("forward", operation.name), i))
    moments += [(Moment("backward", step.operations[i].name), 2 * last + 1 - i) for i in range(last, -1, -1)]
    moments.append((Moment("update", "optimizer"), 2 * last + 2))

    def backward(operation: int) -> float:
        return 2 * last + 1 - operation

    return {
        moment: _gradients(profile, choices, optimizer, schedule, moment, time, backward) + _live(profile, step, choices, time, backward)
        for moment, time in moments
    }


def _gradients(profile, choices, optimizer, schedule, moment, time, backward) -> int:  # type: ignore[no-untyped-def]
    """Bytes of gradients, optimizer state and updates."""
    step, total = step_of(profile, schedule), 0
    adams_temporaries = 2 if optimizer.states == 2 else 0
    for parameter in profile.parameters:
        if parameter.name not in choices.trained:
            continue
        total += optimizer.states * parameter.bytes
        readers = [backward(i) for i, operation in enumerate(step.operations) if parameter.name in operation.parameters]
        if not readers:
            continue
        growing = min(readers) <= time <= max(readers)
        if schedule.early_updates:
            total += parameter.bytes * growing + adams_temporaries * parameter.bytes * (time == max(readers))
        elif schedule.micro_batch == profile.steps[0].batch_size:
            total += parameter.bytes * (time >= min(readers))
        else:
            total += parameter.bytes + parameter.bytes * growing
    if moment.phase == "update" and not schedule.early_updates:
        total += adams_temporaries * max(parameter.bytes for parameter in profile.parameters)
    return int(total)


def _live(profile, step, choices, time, backward) -> int:  # type: ignore[no-untyped-def]
    total = profile.static_bytes
    total += sum(size for size, born, last_use in step.storages if born <= time <= last_use)
    for i, operation in enumerate(step.operations):
        passes = needs_gradient(step, choices.trained, i)
        total += operation.forward_bytes * (time == i)
        total += operation.backward_bytes * (passes and time == backward(i))
        total += operation.internal_bytes * (passes and i < time <= backward(i))
    for a, activation in enumerate(step.activations):
        if a in choices.whole and activation.last_use < time <= backward(min(h.operation for h in activation.holders)):
            total += activation.bytes
        for f, form in enumerate(activation.forms):
            if (a, f) in choices.forms:
                option = form.options[choices.forms[a, f]]
                holders = [activation.holders[h].operation for h in form.holders]
                total += option.held_bytes * (min(holders) - 0.5 <= time <= backward(min(holders)))
                total += option.compress_bytes * (time == min(holders) - 0.5)
                total += option.restore_bytes * sum(time == backward(h) for h in holders)
    return int(total)


def every_plan(step: Step, trainable: list[str]) -> Iterator[Choices]:
    """All choices in which something trains and every holder has what it needs, and nothing is held twice."""
    subsets = chain.from_iterable(combinations(trainable, n) for n in range(1, len(trainable) + 1))
    for trained in map(frozenset, subsets):
        ways = [list(_ways(step, trained, a)) for a in range(len(step.activations))]
        for combination in product(*ways):
            held = {(a, f): o for a, way in enumerate(combination) if isinstance(way, dict) for f, o in way.items()}
            whole = {a for a, way in enumerate(combination) if way is None}
            sources = {source for (a, f), o in held.items() for source in option(step, a, f, o).sources}
            # A source is whole, whether or not its own holders need it; and then no form of it is held.
            if not any(a in sources for a, _ in held):
                yield Choices(trained, frozenset(whole | sources), held)


def option(step: Step, a: int, f: int, o: int) -> Option:
    return step.activations[a].forms[f].options[o]


def _ways(step: Step, trained: frozenset[str], a: int) -> Iterator[dict[int, int] | None]:
    activation = step.activations[a]
    needed = set(needed_holders(step, trained, activation))
    if not needed:
        yield {}
        return
    yield None
    used = [f for f, form in enumerate(activation.forms) if needed & set(form.holders)]
    if needed <= {h for f in used for h in activation.forms[f].holders}:
        for options in product(*(range(len(activation.forms[f].options)) for f in used)):
            yield dict(zip(used, options, strict=True))


def lost_share(profile: Profile, step: Step, trainable: list[str], choices: Choices) -> float:
    """Share of the trainable parameters' energy that is lost."""
    energy = {p.name: p.gradient_energy for p in profile.parameters if p.name in trainable}
    lost = 0.0
    for name in energy:
        if name not in choices.trained:
            lost += energy[name]
            continue
        for (a, f), o in choices.forms.items():
            lost += min(energy[name], option(step, a, f, o).lost_energy.get(name, 0.0))
    return lost / sum(energy.values())


def seconds(step: Step, choices: Choices) -> float:
    return step.seconds + sum(option(step, a, f, o).seconds for (a, f), o in choices.forms.items())
