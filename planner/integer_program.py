"""The choice, for one schedule, as a mixed-integer linear program for HiGHS."""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from time import perf_counter

import numpy as np
from scipy.sparse import vstack

from planner.decoding import whole_choices
from planner.highs import Relaxation, Rows, Solved, Values, solve
from planner.rows import PARTS, ProgramRows
from planner.timeline import Choices, Timeline, exact_choices, losses

TIME_PRICE = 1e-6  # of the objective, for one plain step of time: breaks ties, never buys fidelity worth measuring
OPTION_PRICE = 1e-3  # of a plain step: between ways of the same time, the one with fewer options
LOSS_GAP = 9e-4  # of the objective, to which a plan's loss is proved to be the least
SECONDS_GAP = 1e-2  # of a plain step, the same for an exact plan's time
PEAK_GAP = 1e-5  # of the peak with everything kept, the same for the least peak
TIME_LIMIT_SECONDS = 10.0
ROUNDING_GAP = 5e-3  # of the objective: what is found quickly and not searched for
ROUNDING_SECONDS = 4.0  # at most: it ends much earlier but for machines with other work
SHORTEST = 0.5  # of its seconds, that HiGHS is given at least to solve again
WHOLE = 1e-6  # a value that close to 0 or 1 is one of them
TOLERANCE = 1e-6  # of a unit of bytes, within which HiGHS satisfies a row
NEAR = 0.02  # of the budget: of the relaxation's rows of moments, the program has those that close to it
AT_ONCE = 8  # moments that get rows together
REMEMBERED = 64  # answers, for others within narrower limits
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


@dataclass
class IntegerProgram:
    """The integer program of a schedule.

    Attributes:
        weight: of each trainable parameter in the objective; they sum to 1.
        plain_seconds: of a plain step, the unit of time in the objective.
    """

    timeline: Timeline
    weight: dict[str, float]
    plain_seconds: float

    @cached_property
    def rows(self) -> ProgramRows:
        return ProgramRows(self.timeline, self.weight)

    @cached_property
    def _relaxation(self) -> Relaxation:
        return Relaxation(self.rows.rows)

    @cached_property
    def _moments(self) -> list[int]:
        """Those that have a row in the relaxation."""
        return []

    @cached_property
    def everything(self) -> Choices:
        """All that may train does, and is kept whole."""
        return exact_choices(self.timeline.step, frozenset(self.weight))

    @cached_property
    def peak_of_everything(self) -> int:
        return self.timeline.peak_bytes(self.everything)

    @cached_property
    def seconds_of_everything(self) -> float:
        return self.timeline.seconds(self.everything)

    @cached_property
    def _seconds(self) -> Values:
        """In plain steps, with the price of options."""
        seconds = self.rows.seconds / self.plain_seconds
        seconds[self.rows.at.options : self.rows.losses] += OPTION_PRICE
        return seconds

    @cached_property
    def _losses(self) -> Values:
        costs = TIME_PRICE * self._seconds
        costs[self.rows.losses : self.rows.peak] = 1.0
        return costs

    # ---- what is asked of it

    def exact(self, limits: Limits) -> Choices | None:
        """Choices that train everything and lose nothing, in the least time; None where there are none."""
        if self.peak_of_everything <= limits.budget_bytes and self.seconds_of_everything <= limits.seconds:
            return self.everything
        for wider, known in self._exact:
            if wider.allow(limits) and (known is None or self._keep(known, limits)):
                return known
        choices, bound = self._solve(_Problem(self._seconds, SECONDS_GAP, *self._nothing_lost), limits)
        if choices is not None or bound == np.inf:
            self._exact.append((limits, choices))
        return choices

    @cached_property
    def _exact(self) -> deque[tuple[Limits, Choices | None]]:
        """What was found within other limits: where it keeps to narrower ones it is the fastest there too, and where there was nothing
        there is nothing.
        """
        return deque(maxlen=REMEMBERED)

    def _keep(self, choices: Choices, limits: Limits) -> bool:
        return self.timeline.peak_bytes(choices) <= limits.budget_bytes and self.seconds_of(choices) <= limits.seconds

    def relaxed(self, limits: Limits, decided: Mapping[int, float]) -> Solved | None:
        """The least loss where choices may be made by parts, but for variables that are decided; None where nothing keeps to the limits."""
        return self._relaxed(self._deciding(decided), limits)

    def rounded(self, relaxed: Values, limits: Limits, decided: Mapping[int, float]) -> Choices | None:
        """Choices close to those of a relaxation, quickly: what it decides of options stands too, and the rest is chosen anew (relaxation
        enforced neighbourhood search, Berthold 2014). None where there are none.
        """
        options = np.flatnonzero(self.rows.integral & (np.arange(self.rows.columns) >= self.rows.at.options))
        for _ in range(RETRIES):
            stand = {int(o): float(relaxed[o] > 0.5) for o in options if not WHOLE < relaxed[o] < 1 - WHOLE}
            known = len(self._moments)
            choices, _ = self._solve(
                replace(self._deciding(stand | dict(decided)), gap=ROUNDING_GAP, seconds=ROUNDING_SECONDS, near=True), limits
            )
            if choices is not None or len(self._moments) == known:
                return choices
            again = self.relaxed(limits, decided)  # which now knows the moments that were overfilled
            if again is None:
                return None
            relaxed = again.values
        return None

    def least_loss(
        self, limits: Limits, decided: Mapping[int, float], seconds: float, start: Choices | None = None
    ) -> tuple[Choices | None, float]:
        """The choices that lose least with variables that are decided, None where none were found, and the proven least loss of any such,
        infinite where nothing keeps to the limits.

        Args:
            seconds: for which HiGHS may search.
            start: choices within the limits, to be bettered.
        """
        return self._solve(replace(self._deciding(decided), seconds=seconds, start=start), limits)

    def _deciding(self, decided: Mapping[int, float]) -> "_Problem":
        lower, upper = self._any_loss.lower.copy(), self._any_loss.upper.copy()
        for column, value in decided.items():
            lower[column], upper[column] = value, min(value, upper[column])
        return replace(self._any_loss, lower=lower, upper=upper)

    def remember_bound(self, limits: Limits, bound: float) -> None:
        """That no choices within the limits lose less was proved."""
        self._bounds.append((limits, bound))

    def known_bound(self, limits: Limits) -> float:
        """No choices within the limits lose less, by what was proved within wider ones; 0 where nothing was."""
        return max((bound for wider, bound in self._bounds if wider.allow(limits)), default=0.0)

    @cached_property
    def _bounds(self) -> deque[tuple[Limits, float]]:
        """Least losses that were proved, and within which limits."""
        return deque(maxlen=REMEMBERED)

    def least_seconds(self, limits: Limits, seconds: float = TIME_LIMIT_SECONDS) -> Choices | None:
        """The choices that take the least time."""
        return self._solve(_Problem(self._seconds, SECONDS_GAP, np.zeros(self.rows.columns), self.rows.upper, seconds), limits)[0]

    def least_peak(self, limits: Limits) -> tuple[Choices, int] | None:
        """The choices with the lowest peak, and that peak, whatever the budget; None where nothing keeps to the other limits."""
        choices, _ = self._solve(self._peaks(limits), limits)
        return None if choices is None else (choices, self.timeline.peak_bytes(choices))

    def least_peak_bound(self, limits: Limits) -> float:
        """No choices have a lower peak, in bytes; infinite where nothing keeps to the other limits."""
        solved = self._relaxed(self._peaks(limits), limits)
        return np.inf if solved is None else solved.bound * self.rows.unit

    @cached_property
    def _any_loss(self) -> "_Problem":
        return _Problem(self._losses, LOSS_GAP, np.zeros(self.rows.columns), self.rows.upper)

    def _peaks(self, limits: Limits) -> "_Problem":
        costs = 1e-6 * self._losses  # of all the smallest plans, one that loses little
        costs[self.rows.peak] = 1.0
        lower, upper = self._nothing_lost if limits.loss <= 0 else (np.zeros(self.rows.columns), self.rows.upper.copy())
        upper[self.rows.peak] = np.inf
        return _Problem(costs, PEAK_GAP * PARTS, lower, upper, any_peak=True)

    @property
    def _nothing_lost(self) -> tuple[Values, Values]:
        """Bounds of the variables where everything trains, and only options without loss are there."""
        return self._trained(self.weight), self.rows.upper * self.rows.lossless

    def _trained(self, names: Iterable[str]) -> Values:
        """The variables' values where these parameters train, and all else is 0."""
        values = np.zeros(self.rows.columns)
        values[[self.rows.at.parameter[name] for name in names]] = 1.0
        return values

    # ---- how it is solved

    def _room(self, problem: "_Problem", limits: Limits) -> Values | None:
        """Bytes of each moment that choices may take; None where some moment has not even enough for what is always there."""
        room: Values = (0.0 if problem.any_peak else limits.budget_bytes) - self.timeline.always.astype(np.float64)
        return room if problem.any_peak or (room >= 0).all() else None

    def _relaxed(self, problem: "_Problem", limits: Limits) -> Solved | None:
        """Moments get their rows once a solution has overfilled them: few ever do, and the more rows the slower. Without any all would be
        kept whole, so the first ones need no solution.
        """
        room = self._room(problem, limits)
        if room is None:
            return None
        if not self._moments:
            self._add(_highest(self.rows.beyond(self._values(self.everything), room), TOLERANCE, []))
        while True:
            most = np.append(self.rows.most(limits.loss, limits.seconds), room[self._moments] / self.rows.unit)
            solved = self._relaxation.solve(problem.costs, problem.lower, problem.upper, most)
            if solved is None:
                return None
            further = _highest(self.rows.beyond(solved.values, room), TOLERANCE, self._moments)
            if not further:
                return solved
            self._add(further)

    def expect(self, other: "IntegerProgram") -> None:
        """Rows, before they are overfilled, of the moments that were in another schedule: mostly they are here too."""
        row, known = self.timeline.row, set(self._moments)
        moments = [other.timeline.moments[at] for at in other._moments]
        self._add([row[moment] for moment in moments if moment in row and row[moment] not in known])

    def _add(self, moments: list[int]) -> None:
        """Rows of further moments to the relaxation."""
        self._relaxation.add(self.rows.of_moments(moments))
        self._moments += moments

    def _solve(self, problem: "_Problem", limits: Limits) -> tuple[Choices | None, float]:
        """Choices of the least costs within the limits, None where none were found, and the proven bound of costs, infinite where there
        are none.
        """
        rows, room, relaxed = self.rows, self._room(problem, limits), self._relaxed(problem, limits)
        if room is None or relaxed is None:
            return None, np.inf
        deadline = perf_counter() + problem.seconds
        start = self._values(problem.start) if problem.start is not None else None
        slack = -rows.beyond(relaxed.values, room) * rows.unit
        full = relaxed.values[rows.peak] * rows.unit if problem.any_peak else limits.budget_bytes
        self._add(_highest(-slack, -NEAR * full, self._moments))
        moments = [m for m in self._moments if slack[m] < NEAR * full]
        for _ in range(RETRIES):
            matrix = vstack([rows.rows.matrix, rows.of_moments(moments)], format="csr")
            least = np.append(rows.rows.least, np.full(len(moments), -np.inf))
            most = np.append(rows.most(limits.loss, limits.seconds), room[moments] / rows.unit)
            left = max(SHORTEST * problem.seconds, deadline - perf_counter())
            every = Rows(matrix, least, most)
            values, bound = solve(every, problem.costs, problem.lower, problem.upper, rows.integral, problem.gap, left, start)
            if values is None:
                return None, bound
            choices = whole_choices(rows, values)
            over = rows.beyond(values, room) - TOLERANCE if problem.any_peak else self._over(choices, limits)
            if over.max() <= 0:
                return choices, bound
            room[moments] -= np.maximum(over[moments], 0.0) * rows.unit  # a few bytes, by HiGHS's tolerance
            further = _highest(over, 0.0, moments)
            new = [m for m in further if m not in self._moments]
            self._add(new)
            if new and problem.near:
                break
            moments += further
        return None, relaxed.bound

    def _values(self, choices: Choices) -> Values:
        """The variables' values for choices."""
        values = np.zeros(self.rows.columns)
        values[: self.rows.losses] = self.timeline.variables(choices)
        for name, lost in self.lost(choices).items():
            values[self.rows.loss_at[name]] = self.weight[name] * lost
        return values

    def _over(self, choices: Choices, limits: Limits) -> Values:
        """By how much each moment is over the budget."""
        over: Values = (self.timeline.bytes(choices).sum(0) - limits.budget_bytes) / self.rows.unit
        return over

    def choices_with(self, trained: Iterable[str], options: Iterable[int]) -> Choices:
        """Choices that train these parameters and hold these options, by their variables, where they are of use; all else whole."""
        values = self._trained(trained)
        values[list(options)] = 1.0
        return whole_choices(self.rows, values)

    # ---- of choices

    def seconds_of(self, choices: Choices) -> float:
        """Seconds of a step: of one with all kept whole, and of the options' own work."""
        options = (self.timeline.step.activations[a].forms[f].options[o] for (a, f), o in choices.forms.items())
        return self.timeline.seconds(choices) + sum(option.seconds for option in options)

    def lost(self, choices: Choices) -> dict[str, float]:
        """Share of each trainable parameter's energy that is lost."""
        lost = {name: 0.0 if name in choices.trained else 1.0 for name in self.weight}
        for of_form in losses(self.timeline.step, choices).values():
            for name, energy in of_form.items():
                lost[name] += energy / self.rows.energies[name]
        return lost

    def fidelity(self, choices: Choices) -> float:
        """1 − Σ‖g−ĝ‖² / Σ‖g‖², over the trainable parameters."""
        energies, lost = self.rows.energies, self.lost(choices)
        return 1.0 - sum(energies[name] * share for name, share in lost.items()) / sum(energies[name] for name in lost)

    def loss(self, choices: Choices) -> float:
        """Of the objective, what is lost."""
        return sum(self.weight[name] * lost for name, lost in self.lost(choices).items())


@dataclass(frozen=True, slots=True)
class _Problem:
    """What is to be least, to which gap, with which bounds of the variables.

    Attributes:
        any_peak: the peak is free, whatever the budget.
        near: it is one close to a relaxation, of no use where that did not know of a moment that is overfilled.
        start: choices to be bettered.
    """

    costs: Values
    gap: float
    lower: Values
    upper: Values
    seconds: float = TIME_LIMIT_SECONDS
    any_peak: bool = False
    near: bool = False
    start: Choices | None = None


def _highest(over: Values, least: float, but: list[int]) -> list[int]:
    """Moments over `least` and no lower than their neighbours, some left out; the highest of them."""
    over = over.copy()
    over[but] = -np.inf
    found = np.flatnonzero((over > least) & (over >= np.append(-np.inf, over[:-1])) & (over > np.append(over[1:], -np.inf)))
    highest: list[int] = found[np.argsort(-over[found])][:AT_ONCE].tolist()
    return highest
