"""The workspace of every operation: what records of real steps show beyond the storages known to be live."""

from dataclasses import replace

from planner.capture import TrainingGraph
from planner.footprint import gradient_bytes, timeline, update_bytes
from planner.plan import INDEX, MASK, Schedule
from planner.profile import Moment, Operation, Phase, Profile, Step
from planner.record import Recording
from planner.request import Optimizer
from planner.timeline import Choices, Timeline, exact_choices


def with_workspace(profile: Profile, graph: TrainingGraph, step: Step, exact: Recording, ranged: Recording) -> tuple[Operation, ...]:
    """The operations of a step with their workspaces.

    Args:
        exact: the step with everything kept whole.
        ranged: the same, but what can be used by ranges of samples is, and operations that can work themselves out again do.
    """
    alone = replace(profile, steps=(step,))  # recorded as if the part were all
    everything = exact_choices(step, frozenset(parameter.name for parameter in profile.parameters))
    plainly = timeline(alone, Optimizer(), Schedule(step.batch_size))
    known, known_ranged = _known(plainly, everything), _known(plainly, replace(everything, whole=everything.whole - _own(step)))
    early = timeline(alone, Optimizer(), Schedule(step.batch_size, early_updates=True))
    updated = _known(early, everything)
    complete = {p.name: (gradient_bytes(step, p), min(early.readers[p.name])) for p in profile.parameters if p.name in early.readers}

    def beyond(phase: Phase, operation: str) -> int:
        moment = Moment(phase, operation)
        return profile.static_bytes + exact.peaks[moment] - known[moment] if moment in exact.peaks else 0

    def more(operation: str) -> int:
        moment = Moment("backward", operation)
        if moment not in exact.peaks or moment not in ranged.peaks:
            return 0
        extra = (ranged.peaks[moment] - known_ranged[moment]) - (exact.peaks[moment] - known[moment])
        return -(-extra // len(graph.repeated.get(operation, (operation,))))  # of each input, rounded up

    def passed(i: int, operation: Operation) -> int:
        """The record's step updates nothing before its end: gradients that are complete earlier are still there."""
        moment = Moment("backward", operation.name)
        first = next((name for name in operation.parameters if complete.get(name, (0, -1))[1] == i), None)
        if first is None or moment not in exact.ends:
            return 0
        earlier = sum(size for size, at in complete.values() if at > i)
        update = next(update_bytes(early, parameter) for parameter in profile.parameters if parameter.name == first)
        return profile.static_bytes + exact.ends[moment] - earlier - (updated[Moment("update", first)] - update)

    return tuple(
        replace(
            operation,
            forward_bytes=beyond("forward", operation.name),
            backward_bytes=beyond("backward", operation.name),
            ranged_bytes=more(operation.name),
            passed_bytes=passed(i, operation),
        )
        for i, operation in enumerate(step.operations)
    )


def _known(made: Timeline, choices: Choices) -> dict[Moment, int]:
    return {footprint.moment: footprint.total_bytes for footprint in made.predict(choices)}


def _own(step: Step) -> frozenset[int]:
    """Activations that an operation keeps of its own alone, and not if it works itself out again."""
    return frozenset(
        a
        for a, activation in enumerate(step.activations)
        if any(form.value == step.operations[h.operation].name for form in activation.forms for h in activation.holders[:1])
        and len(activation.holders) == 1
        and not any(option.technique in (MASK, INDEX) for form in activation.forms for option in form.options)
    )
