"""The best choices for a request among several schedules."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush

import numpy as np

from planner.branching import Branching
from planner.integer_program import LOSS_GAP, PEAK_GAP, IntegerProgram
from planner.lazy_program import TIME_LIMIT_SECONDS, Limits
from planner.schedules import NOTICEABLE, Programs
from planner.timeline import Choices

UNHURRIED = 1.15  # plain steps of time: a plan that takes no more is fast enough


@dataclass(frozen=True, slots=True)
class Solution:
    """The best choices for a request, of the best schedule for them. `least_loss`: no choices of any schedule lose less, as proved."""

    program: IntegerProgram
    choices: Choices
    least_loss: float

    @property
    def loss(self) -> float:
        """Of the objective, what is lost."""
        return self.program.loss(self.choices)

    @property
    def seconds(self) -> float:
        return self.program.seconds_of(self.choices)


def limits_of(programs: Programs, budget_bytes: int) -> Limits:
    """What a request's plan keeps to."""
    request = programs.request
    return Limits(
        budget_bytes,
        loss=1.0 - request.min_fidelity if request.min_fidelity is not None else np.inf,
        seconds=request.max_slowdown * programs.plain_seconds if request.max_slowdown is not None else np.inf,
    )


def search(programs: Programs, limits: Limits, seconds: float) -> Solution | None:
    """The best solution of the same request for several schedules; None where nothing keeps to the limits.

    Exact first: where everything can train without loss, a lossy form is not looked at, however little it loses.

    Args:
        seconds: after which the best found stands, with the bounds that were proved by then. 0: the first found.
    """
    hurried = UNHURRIED * programs.plain_seconds
    quick = [program for program in programs.undivided if program.seconds_of_everything <= hurried]
    exact = _fastest_exact(quick, limits, None)
    if exact is None or exact.seconds > hurried:
        slow = [program for program in programs.undivided if program.seconds_of_everything > hurried]
        exact = _fastest_exact([*slow, *programs.divided], limits, exact)
    return exact or _least_loss(list(programs), limits, seconds)


def _fastest_exact(programs: list[IntegerProgram], limits: Limits, fastest: Solution | None) -> Solution | None:
    """What fits as it is comes first, then the others from fast to slow, while they could still be faster."""

    def place(program: IntegerProgram) -> tuple[bool, float]:
        fits = program.peak_of_everything <= limits.budget_bytes
        return not fits, 0.0 if fits else program.seconds_of_everything

    for program in sorted(programs, key=place):
        least = (1 - NOTICEABLE) * fastest.seconds if fastest is not None else np.inf
        if program.seconds_of_everything < least:
            choices = program.exact(replace(limits, seconds=min(limits.seconds, least)))
            if choices is not None and program.seconds_of(choices) < least:
                fastest = Solution(program, choices, 0.0)
    return fastest


def _least_loss(programs: list[IntegerProgram], limits: Limits, seconds: float) -> Solution | None:
    branching = Branching(programs, limits)
    branching.run(seconds, TIME_LIMIT_SECONDS)
    if branching.best is not None:
        _, program, choices = branching.best
        best = Solution(program, choices, branching.bound)
        return _faster(best, limits) if seconds > 0 else best
    smallest = least_peak(programs, limits)  # none was found in time: what takes least may fit all the same
    return replace(smallest[0], least_loss=branching.bound) if smallest is not None and smallest[1] <= limits.budget_bytes else None


def _faster(solution: Solution, limits: Limits) -> Solution:
    """As good within the gap, in less time."""
    if solution.seconds <= UNHURRIED * solution.program.plain_seconds:
        return solution
    most = min(limits.loss, max(solution.loss, solution.least_loss + LOSS_GAP))
    choices = solution.program.faster(solution.choices, replace(limits, loss=most))
    return replace(solution, choices=choices) if choices is not None else solution


def least_peak(programs: Iterable[IntegerProgram], limits: Limits) -> tuple[Solution, int] | None:
    """The choices with the lowest peak of all schedules, and that peak, whatever the budget, within the gap; None where nothing keeps
    to the other limits.

    Best first: a schedule's bound is what is always there, then that of its relaxation, then its peak, each looked at only while it
    is the lowest of all.
    """
    every = list(programs)
    queue: list[tuple[float, bool, int]] = [(float(program.timeline.always.max()), False, n) for n, program in enumerate(every)]
    heapify(queue)
    best: tuple[Solution, int] | None = None
    gap = PEAK_GAP * min((program.peak_of_everything for program in every), default=0)
    while queue and (best is None or queue[0][0] < best[1] - gap):
        _, relaxed, n = heappop(queue)
        if not relaxed:
            if (bound := every[n].least_peak_bound(limits)) < np.inf:
                heappush(queue, (bound, True, n))
            continue
        solved = every[n].least_peak(limits)
        if solved is not None and (best is None or solved[1] < best[1]):
            best = Solution(every[n], solved[0], 0.0), solved[1]
    return best


def least_budget(programs: Iterable[IntegerProgram], limits: Limits) -> tuple[Solution, int] | None:
    """The choices with the lowest peak, and a budget that another search is certain to keep to, which may end as far from the least as
    this one did.
    """
    every = list(programs)
    found = least_peak(every, limits)
    if found is None:
        return None
    return found[0], found[1] + int(2 * PEAK_GAP * max(program.peak_of_everything for program in every))
