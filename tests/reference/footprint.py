"""The footprint of a plan, moment by moment, in the plainest words; and every plan there is."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, combinations, pairwise, product

from planner.plan import Schedule
from planner.profile import Activation, Moment, Option, Profile, Step
from planner.request import Optimizer
from planner.timeline import Choices


def cuts_of(profile: Profile, schedule: Schedule) -> list[int]:
    """The last operation of each segment but the last one."""
    names = [operation.name for operation in profile.steps[0].operations]
    return [names.index(split) for split in schedule.splits]


def segment_of(cuts: list[int], count: int, operation: int) -> range:
    """The operations of a segment, from one of them."""
    edges = [-1, *cuts, count - 1]
    return next(range(a + 1, b + 1) for a, b in pairwise(edges) if a < operation <= b)


def step_of(profile: Profile, schedule: Schedule) -> Step:
    """What choices of a schedule refer to: operations and activations at the sizes they have in it."""
    steps = {step.batch_size: step for step in profile.steps}
    if not schedule.splits:
        return steps[schedule.micro_batch]
    small, large = steps[schedule.slice], profile.steps[0]
    cuts, count = cuts_of(profile, schedule), len(large.operations)
    activations = []
    for a, activation in enumerate(large.activations):
        own = segment_of(cuts, count, activation.born)
        sized = small.activations[a] if own[-1] <= cuts[-1] else activation
        held_inside = [h for h, holder in enumerate(activation.holders) if holder.operation in own]
        if not held_inside:
            activations.append(replace(activation, bytes=0, forms=()))
            continue
        if len(held_inside) < len(activation.holders):
            forms = tuple(
                replace(form, holders=tuple(held_inside.index(h) for h in form.holders))
                for form in sized.forms
                if set(form.holders) <= set(held_inside)
            )
            sized = replace(sized, holders=tuple(activation.holders[h] for h in held_inside), forms=forms, last_use=own[-1])
        if own[0] > 0:  # what it may be worked out from is in its segment too, or at its start, and there anyway
            start = own[0] - 1
            forms = tuple(
                replace(
                    form,
                    options=tuple(replace(o, sources=_after(o, start)) for o in form.options if min(o.sources, default=start) >= start),
                )
                for form in sized.forms
            )
            sized = replace(sized, forms=forms)
        activations.append(sized)
    operations = [(small if i <= cuts[-1] else large).operations[i] for i in range(count)]
    for i, operation in enumerate(operations):
        if operation.over and operation.over.producer not in segment_of(cuts, count, i):
            operations[i] = replace(operation, over=None)  # what crosses stays
    before = {name for operation in operations[: cuts[-1] + 1] for name in operation.parameters}
    rows = {name: (small if name in before else large).rows[name] for name in large.rows}
    return Step(large.batch_size, tuple(operations), tuple(activations), (), rows)


def _after(option: Option, cut: int) -> tuple[int, ...]:
    return tuple(source for source in option.sources if source > cut)


def needs_gradient(step: Step, trained: frozenset[str], operation: int) -> bool:
    it = step.operations[operation]
    return any(p in trained for p in it.parameters) or any(needs_gradient(step, trained, i) for i in it.inputs)


def needed_holders(step: Step, trained: frozenset[str], activation: Activation) -> list[int]:
    return [
        h
        for h, holder in enumerate(activation.holders)
        if (holder.parameter in trained if holder.needed_for == "weight" else needs_gradient(step, trained, holder.operation))
    ]


@dataclass(frozen=True)
class Pass:
    """A forward and a backward of some operations; with times: forward counts up from `start`, backward down to `end`."""

    operations: range
    start: int
    end: int

    def backward(self, operation: int) -> int:
        return self.end - (operation - self.operations[0])


def passes_of(profile: Profile, schedule: Schedule) -> list[Pass]:
    """The last segment, or all there is, and then the others from the last to the first."""
    edges = [-1, *cuts_of(profile, schedule), len(profile.steps[0].operations) - 1]
    ranges = [range(a + 1, b + 1) for a, b in pairwise(edges)]
    return [Pass(operations, 2000 * n, 2000 * n + 1999) for n, operations in enumerate(reversed(ranges))]


SLICED = -10000  # the time of the first operation, before all passes, where the model is divided


def footprint(profile: Profile, choices: Choices, optimizer: Optimizer, schedule: Schedule) -> dict[Moment, int]:
    """Bytes at every moment: walk through the step and add up what lives."""
    step, count = step_of(profile, schedule), len(profile.steps[0].operations)
    names = [operation.name for operation in step.operations]
    first_holders = {min(a.holders[h].operation for h in f.holders) for a in step.activations for f in a.forms}
    passes, cuts = passes_of(profile, schedule), cuts_of(profile, schedule)
    bytes_at: dict[Moment, int] = {}
    for i in range(max(cuts, default=-1) + 1):
        small, own = {each.batch_size: each for each in profile.steps}[schedule.slice], segment_of(cuts, count, i)
        live = sum(size for size, born, last_use in small.storages if born in own and born <= i <= last_use)
        live += small.operations[i].forward_bytes + boundaries(profile, schedule, choices, passes, SLICED + i)
        over = step.operations[i].over
        live -= over.bytes if over else 0  # nobody holds anything
        bytes_at[Moment("sliced", names[i])] = profile.static_bytes + live + _gradients(profile, choices, optimizer, schedule, passes, -1)
    for n, each in enumerate(passes):
        runs = n == 0 or needs_gradient(step, choices.trained, each.operations[-1])  # again only if its gradient is asked for
        moments: list[tuple[Moment, float]] = []
        for i in each.operations:
            if i in first_holders:
                moments.append((Moment("compress", names[i]), each.start + i - each.operations[0] - 0.5))
            moments.append((Moment("forward", names[i]), each.start + i - each.operations[0]))
        for i in reversed(each.operations):
            moments.append((Moment("backward", names[i]), each.backward(i)))
            if schedule.early_updates:
                moments += [(Moment("update", p.name), each.backward(i) + 0.25) for p in profile.parameters if _completes(step, p.name, i)]
        for moment, time in moments:
            total = profile.static_bytes + _gradients(profile, choices, optimizer, schedule, passes, time)
            if moment.phase == "update":
                own = next(p for p in profile.parameters if p.name == moment.operation)
                total += _update(profile, step, schedule, passes, own, optimizer) * (own.name in choices.trained)
            if runs:
                total += _live(profile, schedule, step, choices, each, time) + boundaries(profile, schedule, choices, passes, time)
            bytes_at[moment] = total
    end = Moment("update", "optimizer")
    bytes_at[end] = profile.static_bytes + _gradients(profile, choices, optimizer, schedule, passes, 2000 * len(passes))
    if not schedule.early_updates:
        taken = {p.name: _update(profile, step, schedule, passes, p, optimizer) for p in profile.parameters}
        for name in step.rows:  # one by one, before all others together
            bytes_at[Moment("update", name)] = bytes_at[end] + taken[name] * (name in choices.trained)
        bytes_at[end] += max((taken[p.name] for p in profile.parameters if p.name not in step.rows), default=0)
    return bytes_at


def boundaries(profile: Profile, schedule: Schedule, choices: Choices, passes: list[Pass], time: float) -> int:
    """What is between segments, until the later one has run its last time; and then its gradient, for the earlier one."""
    step, total, whole = step_of(profile, schedule), 0, schedule.slice == profile.steps[0].batch_size
    for later, segment in pairwise(passes):
        cut = segment.operations[-1]
        size = sum(size for size, born, last_use in profile.steps[0].storages if born <= cut < last_use)
        made = SLICED + (cut + 1 if whole else segment.operations[0])  # slices are put together as they come
        done: float = later.end + 0.25
        if later is not passes[0] and not needs_gradient(step, choices.trained, later.operations[-1]):
            done = SLICED + later.operations[-1]
        total += size * (made <= time <= done)
        gone = segment.backward(cut) - 0.5 if whole else segment.end + 0.25  # slices of it are not let go one by one
        total += size * (needs_gradient(step, choices.trained, cut) and segment.start - 0.5 <= time <= gone)
    return total


def _update(profile, step, schedule, passes, parameter, optimizer) -> int:  # type: ignore[no-untyped-def]
    """A parameter of one row: of that a range is all. Of its gradient all rows there are."""
    total = 2 * parameter.bytes * (optimizer.states == 2)
    if parameter.name in step.rows:
        first = min(i for i, operation in enumerate(step.operations) if parameter.name in operation.parameters)
        samples = schedule.micro_batch if first in passes[0].operations else schedule.slice
        total += parameter.bytes + -(-profile.steps[0].batch_size // samples) * step.rows[parameter.name]
    return int(total)


def _completes(step: Step, parameter: str, operation: int) -> bool:
    """Whether an operation's backward is the last that a parameter's gradient has a part from."""
    return operation == next((i for i, each in enumerate(step.operations) if parameter in each.parameters), None)


def _gradients(profile, choices, optimizer, schedule, passes, time) -> int:  # type: ignore[no-untyped-def]
    """Bytes of gradients, optimizer state and updates, and of what the checkpoint brings for the forms."""
    step = step_of(profile, schedule)
    total = sum(option(step, a, f, o).shipped_bytes for (a, f), o in choices.forms.items())
    for parameter in profile.parameters:
        if parameter.name not in choices.trained:
            continue
        total += optimizer.states * parameter.bytes
        reading = [i for i, operation in enumerate(step.operations) if parameter.name in operation.parameters]
        if not reading:
            continue
        n, here = next((n, each) for n, each in enumerate(passes) if reading[0] in each.operations)
        readers = [here.backward(i) for i in reading]
        rows, of_part = parameter.name in step.rows, step.rows.get(parameter.name, parameter.bytes)
        parts = -(-profile.steps[0].batch_size // (schedule.slice if n else schedule.micro_batch))
        of_all = parts * of_part if rows else of_part  # rows one after the other
        adding = of_part + of_all * rows  # which are copied for each part's
        growing = min(readers) <= time <= max(readers)
        applied = time == max(readers) + 0.25  # the whole gradient's update, or that of another one of the same operation
        if n and parts > 1:  # slices add up
            total += of_all * (time >= here.start - 0.5 and not (schedule.early_updates and time > here.end + 0.25)) + adding * growing
        elif schedule.micro_batch < profile.steps[0].batch_size:
            total += of_all + adding * growing
        elif schedule.early_updates:
            total += of_part * (growing or applied)
        else:
            total += of_part * (time >= min(readers))
    return int(total)


def _live(profile, schedule, step, choices, each, time) -> int:  # type: ignore[no-untyped-def]
    total, first, last = 0, each.operations[0], each.operations[-1]

    def forward(operation: int) -> int:
        return int(each.start + min(operation, last) - first)

    sizes = {one.batch_size: one for one in profile.steps}
    split = [operation.name for operation in step.operations].index(schedule.splits[-1]) if schedule.splits else -1
    storages = sizes[schedule.slice if last <= split else schedule.micro_batch].storages
    total += sum(size for size, born, use in storages if born in each.operations and forward(born) <= time <= forward(use))
    for i in each.operations:
        operation = step.operations[i]
        passes = needs_gradient(step, choices.trained, i)
        total += operation.forward_bytes * (time == forward(i))
        if operation.over and operation.over.activation not in choices.whole:
            total -= operation.over.bytes * (time == forward(i))
        total += operation.backward_bytes * (passes and time == each.backward(i))
        total += operation.passed_bytes * (passes and time == each.backward(i) + 0.25)
        total += operation.internal_bytes * (passes and forward(i) < time <= each.backward(i))
    for a, activation in enumerate(step.activations):
        released = min(h.operation for h in activation.holders)
        if a in choices.whole and released in each.operations and forward(activation.last_use) < time <= each.backward(released):
            total += activation.bytes
        for f, form in enumerate(activation.forms):
            holders = [activation.holders[h].operation for h in form.holders]
            if (a, f) in choices.forms and holders[0] in each.operations:
                option = form.options[choices.forms[a, f]]
                total += option.held_bytes * (forward(min(holders)) - 0.5 <= time <= each.backward(min(holders)))
                total += option.compress_bytes * (time == forward(min(holders)) - 0.5)
                ranged = [option.restore_bytes + step.operations[h].ranged_bytes * (option.restore_bytes > 0) for h in holders]
                if option.by_gradient_of is not None:  # nothing is restored; the operation that made it has more to do
                    holders, ranged = [activation.born], [option.restore_bytes]
                total += sum(more for h, more in zip(holders, ranged, strict=True) if time == each.backward(h))
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
            by_others = {option(step, a, f, o).by_gradient_of for (a, f), o in held.items()} - {None}
            if not any(a in sources for a, _ in held) and by_others <= trained:
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
    served = {f: needed & set(activation.forms[f].holders) for f in used}
    for some in chain.from_iterable(combinations(used, n) for n in range(1, len(used) + 1)):
        without = [set().union(*(served[other] for other in some if other != f)) for f in some]  # type: ignore[arg-type]
        if set().union(*(served[f] for f in some)) == needed and needed not in without:  # type: ignore[arg-type]
            for options in product(*(range(len(activation.forms[f].options)) for f in some)):
                yield dict(zip(some, options, strict=True))


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
            if name in _folded(step, choices):
                lost += min(energy[name], option(step, a, f, o).folded_energy.get(name, 0.0))
    return lost / sum(energy.values())


def _folded(step: Step, choices: Choices) -> set[str | None]:
    """The weights whose gradient is worked out with another one's."""
    forms = [(a, f) for (a, f), o in choices.forms.items() if option(step, a, f, o).by_gradient_of is not None]
    return {step.activations[a].holders[step.activations[a].forms[f].holders[0]].parameter for a, f in forms}


def seconds(profile: Profile, choices: Choices, schedule: Schedule) -> float:
    """Of a step: every operation that runs, and the options' own work."""
    step, cuts, total = step_of(profile, schedule), cuts_of(profile, schedule), 0.0
    for i, operation in enumerate(step.operations):
        end = segment_of(cuts, len(step.operations), i)[-1]
        total += operation.forward_seconds + operation.forward_seconds * (end in cuts and needs_gradient(step, choices.trained, end))
        total += operation.backward_seconds * needs_gradient(step, choices.trained, i)
    return total + sum(option(step, a, f, o).seconds for (a, f), o in choices.forms.items())
