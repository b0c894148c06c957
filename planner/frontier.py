"""The frontier: what is to be had at every budget, from the least that fits to the plain peak."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from planner.chosen import activation_choices
from planner.plan import Schedule
from planner.schedules import Programs
from planner.search import Solution, least_peak, limits_of, search
from planner.solver import plain_peak_bytes

POINTS = 24
CHANGES = 4  # of a kind that are named


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    """One budget and the best plan found in it.

    Attributes:
        score: as the plan's: of the request's objective.
        bound: no plan in this budget has a higher score, as proved.
        slowdown: seconds of a step, in those of the plain one.
        trained: how many parameters train.
        held_bytes: of each technique, what its activations take.
        changes: what differs from the point before, in words.
    """

    budget_bytes: int
    predicted_peak_bytes: int
    fidelity: float
    score: float
    bound: float
    slowdown: float
    schedule: Schedule
    trained: int
    held_bytes: dict[str, int]
    changes: tuple[str, ...]


def frontier(programs: Programs, points: int = POINTS, looked: Callable[[float], None] = lambda part: None) -> Iterator[FrontierPoint]:
    """The best quickly found plan at budgets from the least to the plain peak, evenly spaced, the smallest first.

    They are looked at from the largest on: the best plan of one budget is the best of a smaller one, too, if it fits, and what is proved
    of one holds for the smaller ones. A plan that is better than what is found in a larger budget stands there too: more budget never
    harms.

    Args:
        programs: with a request whose budget is left out.
        looked: hears which part is done.
    """
    plain_bytes = plain_peak_bytes(programs.profile, programs.request.optimizer)
    smallest = least_peak(programs, limits_of(programs, plain_bytes))
    assert smallest is not None, "the plain step loses nothing"
    least_bytes, best, before = smallest[1], smallest[0], None
    budgets = [least_bytes + (max(plain_bytes, least_bytes) - least_bytes) * n // max(1, points - 1) for n in range(points)]
    found: dict[int, Solution | None] = {}
    larger: Solution | None = None
    for done, budget_bytes in enumerate(reversed(budgets), start=1):
        if larger is None or larger.program.timeline.peak_bytes(larger.choices) > budget_bytes:
            larger = search(programs, limits_of(programs, budget_bytes), 0.0)
        found[budget_bytes] = larger
        looked(done / points)
    for budget_bytes in budgets:
        here = found[budget_bytes]
        if here is not None and here.loss <= best.loss:
            best = here
        bound = 1.0 - (here.least_loss if here is not None else 0.0)
        yield _point(programs, best, budget_bytes, max(bound, 1.0 - best.loss), before)
        before = best


def _point(programs: Programs, solution: Solution, budget_bytes: int, bound: float, before: Solution | None) -> FrontierPoint:
    program, choices = solution.program, solution.choices
    held: dict[str, int] = {}
    for choice in activation_choices(program.timeline, choices):
        held[choice.technique] = held.get(choice.technique, 0) + choice.held_bytes
    return FrontierPoint(
        budget_bytes=budget_bytes,
        predicted_peak_bytes=program.timeline.peak_bytes(choices),
        fidelity=program.fidelity(choices),
        score=1.0 - solution.loss,
        bound=bound,
        slowdown=solution.seconds / programs.plain_seconds,
        schedule=program.timeline.schedule,
        trained=len(choices.trained),
        held_bytes={technique: size for technique, size in sorted(held.items()) if size},
        changes=tuple(_changes(before, solution)) if before is not None else (),
    )


def _changes(before: Solution, now: Solution) -> Iterator[str]:
    """What this point does that the one before did not."""
    yield from _named("trains", now.choices.trained - before.choices.trained)
    yield from _named("freezes", before.choices.trained - now.choices.trained)
    was, is_now = before.program.timeline.schedule, now.program.timeline.schedule
    if was != is_now:
        yield f"the batch goes {is_now}"
    old, new = ({c.name + c.value: c for c in activation_choices(s.program.timeline, s.choices)} for s in (before, now))
    moved: dict[str, list[str]] = {}
    for key in new.keys() & old.keys():
        if new[key].technique != old[key].technique:
            moved.setdefault(new[key].technique, []).append(new[key].name)
    for technique, names in sorted(moved.items()):
        yield from _named(f"{technique}:", frozenset(names))


def _named(word: str, names: frozenset[str]) -> Iterator[str]:
    if names:
        some = sorted(names)[:CHANGES]
        yield f"{word} {', '.join(some)}" + (f" and {len(names) - CHANGES} more" if len(names) > CHANGES else "")
