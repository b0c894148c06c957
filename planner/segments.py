"""What a step's choices refer to where the model is divided: each segment holds what its own operations need, from its own forward on."""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, replace

from planner.profile import Activation, Form, Operation, Option, Step
from planner.timeline import gradient_flow, readers_of


def divided_step(part: Step, whole: Step, cuts: tuple[int, ...]) -> Step:
    """Operations and activations up to the last cut at the size of a slice, those after it at that of the whole batch.

    Args:
        cuts: the last operation of each segment but the last one.
    """
    starts, ends = (-1, *cuts), (*cuts, len(whole.operations) - 1)

    def activation(small: Activation, large: Activation) -> Activation:
        at = bisect_left(cuts, large.born)
        sized = small if at < len(cuts) else large
        kept = [h for h, holder in enumerate(sized.holders) if holder.operation <= ends[at]]
        if not kept:  # held by later segments alone, for which it is there anyway
            return replace(large, bytes=0, forms=())
        if len(kept) < len(sized.holders):
            forms = (
                replace(form, holders=tuple(kept.index(h) for h in form.holders)) for form in sized.forms if set(form.holders) <= set(kept)
            )
            holders = tuple(sized.holders[h] for h in kept)
            sized = replace(sized, holders=holders, last_use=min(sized.last_use, ends[at]), forms=tuple(forms))
        return sized if starts[at] < 0 else replace(sized, forms=_from(starts[at], whole, sized.forms))

    def operation(i: int) -> Operation:
        sized = part.operations[i] if i <= cuts[-1] else whole.operations[i]
        # What crosses a cut is there until its gradient comes.
        return replace(sized, over=None) if sized.over is not None and sized.over.producer <= starts[bisect_left(cuts, i)] else sized

    before = {name for each in whole.operations[: cuts[-1] + 1] for name in each.parameters}
    return Step(
        whole.batch_size,
        tuple(map(operation, range(len(whole.operations)))),
        tuple(map(activation, part.activations, whole.activations)),
        (*(s for s in part.storages if s[1] <= cuts[-1]), *(s for s in whole.storages if s[1] > cuts[-1])),
        {name: (part if name in before else whole).rows[name] for name in whole.rows},
    )


def _from(start: int, whole: Step, forms: tuple[Form, ...]) -> tuple[Form, ...]:
    """Forms whose options are worked out from what is there in a segment: its own activations, and the value at its start."""
    if not any("sources" in option.settings for form in forms for option in form.options):
        return forms
    names = {operation.name for operation in whole.operations[start:]}

    def options(of: Iterable[Option]) -> Iterable[Option]:
        for option in of:
            if all(source in names for source in option.settings.get("sources", ())):  # type: ignore[union-attr]
                sources = tuple(a for a in option.sources if whole.activations[a].born > start)
                yield option if sources == option.sources else replace(option, sources=sources)

    return tuple(replace(form, options=tuple(options(form.options))) for form in forms)


@dataclass(frozen=True, slots=True)
class Crossing:
    """What operations after a cut read of what is before it.

    Attributes:
        boundary_bytes: of the tensor that was worked out with some parameter.
        anew_bytes: of masks and the like, which each segment works out for itself.
    """

    boundary_bytes: int
    anew_bytes: int


def crossings(step: Step, cuts: tuple[int, ...]) -> list[Crossing]:
    """At each of the cuts."""
    passes = gradient_flow(step, frozenset(readers_of(step)))

    def size_of(cut: int, anew: bool) -> int:
        return sum(size for size, born, last_use in step.storages if born <= cut < last_use and passes[born] != anew)

    return [Crossing(size_of(cut, anew=False), size_of(cut, anew=True)) for cut in cuts]
