"""An integer program whose rows of moments come as solutions overfill them: few ever do, and the more rows the slower."""

from dataclasses import dataclass
from functools import cached_property
from time import perf_counter

import numpy as np
from scipy.sparse import vstack

from planner import highs
from planner.decoding import whole_choices
from planner.highs import Relaxation, Rows, Solved, Values
from planner.rows import ProgramRows
from planner.timeline import Choices

TIME_LIMIT_SECONDS = 10.0
SHORTEST = 0.25  # of its seconds, that HiGHS is given at least to solve again where no choices are known
TOLERANCE = 1e-6  # of a unit of bytes, within which HiGHS satisfies a row
NEAR = 0.002  # of the budget: of the relaxation's rows of moments, the program has those that close to it
AT_ONCE = 8  # moments that get rows together
RETRIES = 30  # of a solution that overfills moments without rows, or is a few bytes over for all that


@dataclass(frozen=True, slots=True)
class Limits:
    """What choices keep to.

    Attributes:
        budget_bytes: most bytes of any moment. Where the least peak is looked for, it says nothing.
        loss: most of the objective that is lost.
        seconds: most of a step.
    """

    budget_bytes: int
    loss: float = np.inf
    seconds: float = np.inf

    def allow(self, other: "Limits") -> bool:
        """Whether all that keeps to the others keeps to these."""
        return self.budget_bytes >= other.budget_bytes and self.loss >= other.loss and self.seconds >= other.seconds


@dataclass(frozen=True, slots=True)
class Problem:
    """What is to be least, to which gap, with which bounds of the variables.

    Attributes:
        any_peak: the peak is free, whatever the budget.
        near: it is one close to a relaxation, of no use where that did not know of a moment that is overfilled.
        wanted: costs of choices that are of use, below those of some that are known.
    """

    costs: Values
    gap: float
    lower: Values
    upper: Values
    seconds: float = TIME_LIMIT_SECONDS
    any_peak: bool = False
    near: bool = False
    wanted: float = np.inf


@dataclass
class LazyProgram:
    """Solves for choices that keep to the rows and fit at every moment."""

    rows: ProgramRows

    @cached_property
    def moments(self) -> list[int]:
        """Those that have a row in the relaxation."""
        return []

    @cached_property
    def _relaxation(self) -> Relaxation:
        return Relaxation(self.rows.rows)

    def relaxed(self, problem: Problem, limits: Limits) -> Solved | None:
        """Moments get their rows once a solution has overfilled them: few ever do, and the more rows the slower. Without any all would be
        kept whole, so the first ones need no solution.
        """
        room = self._room(problem, limits)
        if room is None:
            return None
        if not self.moments:
            self._add(_highest(self.rows.beyond(self.rows.values(self.rows.everything), room), TOLERANCE, []))
        while True:
            most = np.append(self.rows.most(limits.loss, limits.seconds), room[self.moments] / self.rows.unit)
            solved = self._relaxation.solve(problem.costs, problem.lower, problem.upper, most)
            if solved is None:
                return None
            further = _highest(self.rows.beyond(solved.values, room), TOLERANCE, self.moments)
            if not further:
                return solved
            self._add(further)

    def price(self, relaxed: Solved) -> float:
        """By how much the costs of what was relaxed last change with a byte of the budget: 0 or less."""
        of_moments = relaxed.prices[len(self.rows.rows.least) :]
        return float(of_moments.sum()) / self.rows.unit

    def solve(self, problem: Problem, limits: Limits) -> tuple[Choices | None, float]:
        """Choices of the least costs within the limits, None where none were found, and the proven bound of costs: as wanted where there
        are none that are, infinite where not even the relaxation has any.
        """
        rows, room, relaxed = self.rows, self._room(problem, limits), self.relaxed(problem, limits)
        if room is None or relaxed is None:
            return None, np.inf
        deadline = perf_counter() + problem.seconds
        slack = -rows.beyond(relaxed.values, room) * rows.unit
        full = relaxed.values[rows.peak] * rows.unit if problem.any_peak else limits.budget_bytes
        self._add(_highest(-slack, -NEAR * full, self.moments))
        moments = [m for m in self.moments if slack[m] < NEAR * full]
        bound = relaxed.costs
        for _ in range(RETRIES):
            matrix = vstack([rows.rows.matrix, rows.of_moments(moments)], format="csr")
            least = np.append(rows.rows.least, np.full(len(moments), -np.inf))
            most = np.append(rows.most(limits.loss, limits.seconds), room[moments] / rows.unit)
            left = deadline - perf_counter()
            if problem.wanted == np.inf:
                left = max(left, SHORTEST * problem.seconds)
            elif left <= 0:
                break
            every = Rows(matrix, least, most)
            values, proved = highs.solve(
                every, problem.costs, problem.lower, problem.upper, rows.integral, problem.gap, left, problem.wanted
            )
            bound = max(bound, proved)
            if values is None:
                return None, bound
            choices = whole_choices(rows, values)
            over = rows.beyond(values, room) - TOLERANCE if problem.any_peak else self._over(choices, limits)
            if over.max() <= 0:
                return choices, bound
            room[moments] -= np.maximum(over[moments], 0.0) * rows.unit  # a few bytes, by HiGHS's tolerance
            further = _highest(over, 0.0, moments)
            new = [m for m in further if m not in self.moments]
            self._add(new)
            if new and problem.near:
                break
            moments += further
        return None, bound

    def expect(self, other: "LazyProgram") -> None:
        """Rows, before they are overfilled, of the moments that were in another schedule: mostly they are here too."""
        row, known = self.rows.timeline.row, set(self.moments)
        moments = [other.rows.timeline.moments[at] for at in other.moments]
        self._add([row[moment] for moment in moments if moment in row and row[moment] not in known])

    def _room(self, problem: Problem, limits: Limits) -> Values | None:
        """Bytes of each moment that choices may take; None where some moment has not even enough for what is always there."""
        room: Values = (0.0 if problem.any_peak else limits.budget_bytes) - self.rows.timeline.always.astype(np.float64)
        return room if problem.any_peak or (room >= 0).all() else None

    def _add(self, moments: list[int]) -> None:
        """Rows of further moments to the relaxation."""
        self._relaxation.add(self.rows.of_moments(moments))
        self.moments += moments

    def _over(self, choices: Choices, limits: Limits) -> Values:
        """By how much each moment is over the budget."""
        over: Values = (self.rows.timeline.bytes(choices).sum(0) - limits.budget_bytes) / self.rows.unit
        return over


def _highest(over: Values, least: float, but: list[int]) -> list[int]:
    """Moments over `least` and no lower than their neighbours, some left out; the highest of them."""
    over = over.copy()
    over[but] = -np.inf
    found = np.flatnonzero((over > least) & (over >= np.append(-np.inf, over[:-1])) & (over > np.append(over[1:], -np.inf)))
    highest: list[int] = found[np.argsort(-over[found])][:AT_ONCE].tolist()
    return highest
