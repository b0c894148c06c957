"""What lives when, in a step of each schedule: from a profile to the runs of a timeline."""

from dataclasses import replace
from itertools import pairwise

from planner.plan import Correction, Footprint, Schedule
from planner.profile import Moment, Operation, Parameter, Phase, Profile, Step
from planner.request import Optimizer
from planner.segments import crossings, divided_step
from planner.timeline import ALWAYS, Timeline, exact_choices, readers_of, segments

RANGE_BYTES = 1 << 20  # of a table, updated at once: as in `memfit.row_updates`, which needs torch


def timeline(profile: Profile, optimizer: Optimizer, schedule: Schedule, corrections: tuple[Correction, ...] = ()) -> Timeline:
    """The timeline of a schedule of the profile's sizes. A correction of this schedule adds to its moment what a measured step took
    beyond the prediction.
    """
    made = _divided(profile, optimizer, schedule) if schedule.splits else _at_once(profile, optimizer, schedule)
    for correction in corrections:
        if correction.schedule == schedule:
            at = made.row[correction.moment]
            made.add("transient", at, at, ALWAYS, correction.extra_bytes)
    return made


def plain_timeline(profile: Profile) -> tuple[Footprint, ...]:
    """Of a step of the whole batch that trains everything and keeps it whole, with an optimizer without state."""
    everything = exact_choices(profile.whole, frozenset(parameter.name for parameter in profile.parameters))
    return timeline(without_rows(profile), Optimizer(), Schedule(profile.whole.batch_size)).predict(everything)


def without_rows(profile: Profile) -> Profile:
    """The profile of a step that somebody else updates: with gradients as torch has them."""
    return replace(profile, steps=tuple(replace(step, rows={}) for step in profile.steps))


def gradient_bytes(step: Step, parameter: Parameter) -> int:
    """Of one parameter, of so many samples as the step has."""
    return step.rows.get(parameter.name, parameter.bytes)


def step_of(profile: Profile, samples: int) -> Step:
    return next(step for step in profile.steps if step.batch_size == samples)


def _cuts(profile: Profile, schedule: Schedule) -> tuple[int, ...]:
    """Of a schedule's splits, the operations by index."""
    return tuple(i for i, operation in enumerate(profile.whole.operations) if operation.name in schedule.splits)


def planned_step(profile: Profile, schedule: Schedule) -> Step:
    """The operations and activations that a schedule's choices refer to."""
    if not schedule.splits:
        return step_of(profile, schedule.micro_batch)
    return divided_step(step_of(profile, schedule.slice), profile.whole, _cuts(profile, schedule))


# ---- all operations of a part of the batch, then the next part


def _at_once(profile: Profile, optimizer: Optimizer, schedule: Schedule) -> Timeline:
    step = step_of(profile, schedule.micro_batch)
    last, updated = len(step.operations) - 1, _early_moments(profile, step, schedule)
    moments = [*_forward_moments(step, range(last + 1), "forward"), *_backward_moments(step, range(last + 1), updated)]
    made = Timeline(profile, optimizer, schedule, step, (*moments, *_last_moments(profile, step, schedule)))
    made.add("static", 0, len(made.moments) - 1, ALWAYS, profile.static_bytes)
    for column, parameter in enumerate(profile.parameters):
        made.add("static", 0, len(made.moments) - 1, column, optimizer.states * parameter.bytes)
        readers = made.readers.get(parameter.name)
        if readers:
            first_part, complete = (made.row[Moment("backward", step.operations[i].name)] for i in (max(readers), min(readers)))
            if schedule.micro_batch == profile.whole.batch_size:
                _gradient(made, column, parameter, first_part)
            else:  # the sum over the parts of the batch, and the gradient of a part until it is added
                made.add("static", 0, len(made.moments) - 1, column, _sum_bytes(made, parameter, schedule.micro_batch))
                made.add("transient", first_part, complete, column, _adding_bytes(made, parameter, schedule.micro_batch))
    _activations_of(made, step, range(last + 1), ALWAYS, "forward")
    _last_update(made)
    return made


def _forward_moments(step: Step, operations: range, phase: Phase) -> list[Moment]:
    """The moments of a forward: forms are made before the first operation that holds one."""
    first_holders = {
        min(activation.holders[h].operation for h in form.holders) for activation in step.activations for form in activation.forms
    }
    moments: list[Moment] = []
    for i in operations:
        if i in first_holders:
            moments.append(Moment("compress", step.operations[i].name))
        moments.append(Moment(phase, step.operations[i].name))
    return moments


def _backward_moments(step: Step, operations: range, updated: dict[int, list[Moment]]) -> list[Moment]:
    """The moments of a backward, and of early updates: those of an operation's parameters come right after its backward."""
    return [moment for i in reversed(operations) for moment in (Moment("backward", step.operations[i].name), *updated.get(i, ()))]


def _early_moments(profile: Profile, step: Step, schedule: Schedule) -> dict[int, list[Moment]]:
    """Updates of the parameters whose gradients are complete with an operation's backward."""
    updated: dict[int, list[Moment]] = {}
    readers = readers_of(step) if schedule.early_updates else {}
    for parameter in profile.parameters:
        if parameter.name in readers:
            updated.setdefault(min(readers[parameter.name]), []).append(Moment("update", parameter.name))
    return updated


def _sum_bytes(made: Timeline, parameter: Parameter, samples: int) -> int:
    """Of the gradients of all parts of a batch, so many samples each: added up, or their rows one after the other."""
    parts = -(-made.profile.whole.batch_size // samples) if parameter.name in made.step.rows else 1
    return parts * gradient_bytes(made.step, parameter)


def _adding_bytes(made: Timeline, parameter: Parameter, samples: int) -> int:
    """Transient bytes of a part's gradient; rows are copied to stand one after the other."""
    copied = _sum_bytes(made, parameter, samples) if parameter.name in made.step.rows else 0
    return gradient_bytes(made.step, parameter) + copied


def _gradient(made: Timeline, column: int, parameter: Parameter, first_part: int) -> None:
    """A gradient of the whole batch, from its first part on: until its update, or the step's end."""
    if made.schedule.early_updates:
        made.add("static", first_part, _early_update(made, column, parameter), column, gradient_bytes(made.step, parameter))
    else:
        made.add("static", first_part, len(made.moments) - 1, column, gradient_bytes(made.step, parameter))


def _early_update(made: Timeline, column: int, parameter: Parameter) -> int:
    """The update of a parameter whose gradient is complete; the row until which gradients of the same operation live."""
    operation = min(made.readers[parameter.name])
    here = made.row[Moment("update", parameter.name)]
    made.add("transient", here, here, column, update_bytes(made, parameter))
    made.add("transient", here, here, made.columns.gradients + operation, made.step.operations[operation].passed_bytes)
    together = (name for name in made.step.operations[operation].parameters if min(made.readers[name]) == operation)
    return max(made.row[Moment("update", name)] for name in together if Moment("update", name) in made.row)


def update_bytes(made: Timeline, parameter: Parameter) -> int:
    """Transient bytes of one parameter's update: Adam works out its step in two temporaries. From rows, a range of the parameter is updated
    at a time: its gradient, and the rows that are in it.
    """
    temporaries = 2 if made.optimizer.states == 2 else 0
    if parameter.name not in made.step.rows:
        return temporaries * parameter.bytes
    in_slices = min(made.readers[parameter.name]) <= max(made.again, default=-1)
    rows = _sum_bytes(made, parameter, made.schedule.slice if in_slices else made.schedule.micro_batch)
    at_once = max(1, min(parameter.shape[0], RANGE_BYTES * parameter.shape[0] // parameter.bytes))
    return (1 + temporaries) * at_once * (parameter.bytes // parameter.shape[0]) + rows


def _last_moments(profile: Profile, step: Step, schedule: Schedule) -> list[Moment]:
    """Of the update at the end: parameters with rows for gradients one by one, then all others."""
    by_rows = [] if schedule.early_updates else [p.name for p in profile.parameters if p.name in step.rows]
    return [Moment("update", name) for name in (*by_rows, "optimizer")]


def _last_update(made: Timeline) -> None:
    if made.schedule.early_updates:
        return
    others = 0
    for column, parameter in enumerate(made.profile.parameters):
        if parameter.name in made.step.rows:
            here = made.row[Moment("update", parameter.name)]
            made.add("transient", here, here, column, update_bytes(made, parameter))
        else:
            others = max(others, update_bytes(made, parameter))
    made.add("transient", len(made.moments) - 1, len(made.moments) - 1, ALWAYS, others)


def _activations_of(made: Timeline, step: Step, operations: range, when: int, forward: Phase) -> None:
    """Storages, workspaces and activations of a forward and a backward of some operations.

    Args:
        when: the variable without which this forward does not run.
    """
    columns, end = made.columns, operations[-1]
    rows = {
        phase: {i: made.row.get(Moment(phase, step.operations[i].name)) for i in operations} for phase in (forward, "backward", "compress")
    }

    def at(phase: Phase, i: int) -> int:
        row = rows[phase][i]
        assert row is not None
        return row

    for size, born, last_use in step.storages:
        if born in operations:
            made.add("transient", at(forward, born), at(forward, min(last_use, end)), when, size)
    for i in operations:
        operation = step.operations[i]
        made.add("transient", at(forward, i), at(forward, i), when, operation.forward_bytes - _over_bytes(operation))
        if operation.over is not None and operation.over.activation is not None:
            made.add("transient", at(forward, i), at(forward, i), columns.wholes + operation.over.activation, operation.over.bytes)
        made.add("transient", at("backward", i), at("backward", i), columns.gradients + i, operation.backward_bytes)
        made.add("saved", at(forward, i) + 1, at("backward", i), columns.gradients + i, operation.internal_bytes)
    for a, activation in enumerate(step.activations):
        release = min(holder.operation for holder in activation.holders)
        if release in operations:
            made.add("saved", at(forward, min(activation.last_use, end)) + 1, at("backward", release), columns.wholes + a, activation.bytes)
    column = columns.options  # its variables are in the order of activations, forms and options
    for activation in step.activations:
        for form in activation.forms:
            holders = [activation.holders[h].operation for h in form.holders]
            if (first := min(holders)) in operations:
                compress, release = at("compress", first), at("backward", first)
                restores = [(at("backward", holder), step.operations[holder].ranged_bytes) for holder in holders]
                made.add_each("static", 0, len(made.moments) - 1, column, (o.shipped_bytes for o in form.options))
                made.add_each("saved", compress, release, column, (o.held_bytes for o in form.options))
                made.add_each("transient", compress, compress, column, (o.compress_bytes for o in form.options))
                for at_option, option in enumerate(form.options, start=column):
                    if option.restore_bytes:
                        folded = option.by_gradient_of is not None  # the convolution's weight takes the norm's scale
                        for restore, ranged_bytes in [(at("backward", activation.born), 0)] if folded else restores:
                            made.add("transient", restore, restore, at_option, option.restore_bytes + ranged_bytes)
            column += len(form.options)


def _over_bytes(operation: Operation) -> int:
    """What an operation's result takes no bytes of its own for."""
    return operation.over.bytes if operation.over is not None else 0


# ---- up to the last split without autograd, then the rest at once, then the segments before it again, from the last to the first


def _divided(profile: Profile, optimizer: Optimizer, schedule: Schedule) -> Timeline:
    part, cuts, at_once = step_of(profile, schedule.slice), _cuts(profile, schedule), schedule.slice == profile.whole.batch_size
    step, divided = planned_step(profile, schedule), segments(cuts)
    updated = _early_moments(profile, step, schedule)
    moments = [Moment("sliced", operation.name) for operation in step.operations[: cuts[-1] + 1]]
    passes = dict[range, tuple[int, int, int]]()  # of each segment: its first row, that of its first backward, the row after the last
    for operations in (last := range(cuts[-1] + 1, len(step.operations)), *reversed(divided)):
        forward, backward = _forward_moments(step, operations, "forward"), _backward_moments(step, operations, updated)
        passes[operations] = len(moments), len(moments) + len(forward), len(moments) + len(forward) + len(backward)
        moments += [*forward, *backward]
    moments += _last_moments(profile, step, schedule)
    made = Timeline(profile, optimizer, schedule, step, tuple(moments), again=cuts)
    end = len(moments) - 1
    made.add("static", 0, end, ALWAYS, profile.static_bytes)
    for column, parameter in enumerate(profile.parameters):
        made.add("static", 0, end, column, optimizer.states * parameter.bytes)
        readers = made.readers.get(parameter.name)
        if not readers:
            continue
        first_part, complete = (made.row[Moment("backward", step.operations[i].name)] for i in (max(readers), min(readers)))
        if at_once or min(readers) in last:
            _gradient(made, column, parameter, first_part)
            continue
        first, _, after = next(rows for operations, rows in passes.items() if min(readers) in operations)
        over_slices = _sum_bytes(made, parameter, schedule.slice)
        made.add("static", first, after - 1 if schedule.early_updates else end, column, over_slices)
        made.add("transient", first_part, complete, column, _adding_bytes(made, parameter, schedule.slice))
        if schedule.early_updates:
            _early_update(made, column, parameter)
    of_whole, of_part = crossings(profile.whole, cuts), crossings(part, cuts)
    for n, (segment, later) in enumerate(pairwise((*divided, last))):
        size, again = of_whole[n].boundary_bytes, made.columns.gradients + segment[-1]
        born = segment[-1] + 1 if at_once else segment[0]  # slices of it come one after the other
        _, _, after = passes[later]
        if later is last:
            made.add("saved", born, after - 1, ALWAYS, size)
        else:
            made.add("saved", born, later[-1], ALWAYS, size)
            made.add("saved", later[-1] + 1, after - 1, made.columns.gradients + later[-1], size)
        first, backward_row, after = passes[segment]
        made.add("saved", first, (backward_row if at_once else after) - 1, again, size)  # its gradient
        first, _, after = passes[later]
        if later is last:
            made.add("transient", first, after - 1, ALWAYS, of_whole[n].anew_bytes)
        else:
            made.add("transient", later[0], later[-1], ALWAYS, of_part[n].anew_bytes)
            made.add("transient", first, after - 1, made.columns.gradients + later[-1], of_part[n].anew_bytes)
    for segment in divided:
        for size, storage_born, last_use in part.storages:
            if storage_born in segment:
                made.add("transient", storage_born, min(last_use, segment[-1]), ALWAYS, size)
        for i in segment:
            made.add("transient", i, i, ALWAYS, step.operations[i].forward_bytes - _over_bytes(step.operations[i]))
        _activations_of(made, step, segment, made.columns.gradients + segment[-1], "forward")
    _activations_of(made, step, last, ALWAYS, "forward")
    _last_update(made)
    return made
