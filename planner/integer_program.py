"""The choice, for one schedule, as a mixed-integer linear program: what is asked of it, and at which prices."""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from planner.decoding import whole_choices
from planner.highs import Solved, Values
from planner.lazy_program import RETRIES, LazyProgram, Limits, Problem
from planner.rows import PARTS, ProgramRows
from planner.timeline import Choices, Timeline, exact_choices

TIME_PRICE = 1e-6  # of the objective, for one plain step of time: breaks ties, never buys fidelity worth measuring
OPTION_PRICE = 1e-3  # of a plain step: between ways of the same time, the one with fewer options
LOSS_GAP = 9e-4  # of the objective, to which a plan's loss is proved to be the least
SECONDS_GAP = 1e-2  # of a plain step, the same for an exact plan's time
PEAK_GAP = 1e-5  # of the peak with everything kept, the same for the least peak
ROUNDING_GAP = 3e-4  # of the objective, the same near a relaxation: all that is searched for after it is measured by what is found there
ROUNDING_SECONDS = 4.0  # at most: it ends much earlier but for machines with other work
FASTER_SECONDS = 0.5  # at most, the same
WHOLE = 1e-6  # a value that close to 0 or 1 is one of them
REMEMBERED = 64  # answers, for others within narrower limits


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
    def lazy(self) -> LazyProgram:
        return LazyProgram(self.rows)

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

    def exact(self, limits: Limits) -> Choices | None:
        """Choices that train everything and lose nothing, in the least time; None where there are none."""
        if self.peak_of_everything <= limits.budget_bytes and self.seconds_of_everything <= limits.seconds:
            return self.everything
        for wider, known in self._exact:
            if wider.allow(limits) and (known is None or self._keep(known, limits)):
                return known
        choices, bound = self.lazy.solve(Problem(self._seconds, SECONDS_GAP, *self._nothing_lost), limits)
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
        solved = self.lazy.relaxed(self._deciding(decided), limits)
        if solved is not None and not decided:
            self._tangents.append((limits, solved.costs, self.lazy.price(solved)))
        return solved

    def rounded(
        self, relaxed: Values, limits: Limits, decided: Mapping[int, float], trained: bool, wanted: float = np.inf
    ) -> Choices | None:
        """Choices close to those of a relaxation: what it decides of options stands, and the rest is chosen anew (relaxation enforced
        neighbourhood search, Berthold 2014). None where there are none.

        Args:
            trained: whether what it trains stands too: a few times quicker, and not as good.
            wanted: the loss below which choices are of use.
        """
        for _ in range(RETRIES):
            decides = self.rows.integral & ((relaxed <= WHOLE) | (relaxed >= 1 - WHOLE))
            decides[: self.rows.at.gradients] &= trained & (relaxed[: self.rows.at.gradients] > 0.5)  # not what it freezes
            stand = {int(column): float(relaxed[column] > 0.5) for column in np.flatnonzero(decides)}
            known = len(self.lazy.moments)
            problem = replace(self._deciding(stand | dict(decided)), gap=ROUNDING_GAP, seconds=ROUNDING_SECONDS, near=True, wanted=wanted)
            choices, bound = self.lazy.solve(problem, limits)
            if choices is not None or bound >= wanted or len(self.lazy.moments) == known:
                return choices
            again = self.relaxed(limits, decided)  # which now knows the moments that were overfilled
            if again is None:
                return None
            relaxed = again.values
        return None

    def least_loss(self, limits: Limits, decided: Mapping[int, float], seconds: float, wanted: float) -> tuple[Choices | None, float]:
        """The choices that lose least with variables that are decided, None where none were found, and the proven least loss of any such.

        Args:
            seconds: for which HiGHS may search.
            wanted: the loss below which choices are of use; no more is proved.
        """
        return self.lazy.solve(replace(self._deciding(decided), seconds=seconds, wanted=wanted), limits)

    def _deciding(self, decided: Mapping[int, float]) -> Problem:
        lower, upper = self._any_loss.lower.copy(), self._any_loss.upper.copy()
        for column, value in decided.items():
            lower[column], upper[column] = value, min(value, upper[column])
        return replace(self._any_loss, lower=lower, upper=upper)

    def remember_bound(self, limits: Limits, bound: float) -> None:
        """That no choices within the limits lose less was proved."""
        self._bounds.append((limits, bound))

    def known_bound(self, limits: Limits) -> float:
        """No choices within the limits lose less, by what was proved within wider ones and of other budgets; 0 where nothing was.

        The least loss of a relaxation is a convex function of the budget, which lies nowhere below its tangents (Bertsimas and
        Tsitsiklis 1997, section 5.2).
        """
        budget_bytes = limits.budget_bytes
        proved = [bound for wider, bound in self._bounds if wider.allow(limits)]
        for other, loss, price in self._tangents:
            if replace(other, budget_bytes=budget_bytes).allow(limits):
                proved.append(loss + price * (budget_bytes - other.budget_bytes))
        return max(proved, default=0.0)

    @cached_property
    def _bounds(self) -> deque[tuple[Limits, float]]:
        """Least losses that were proved, and within which limits."""
        return deque(maxlen=REMEMBERED)

    @cached_property
    def _tangents(self) -> deque[tuple[Limits, float, float]]:
        """Least losses of relaxations, within which limits, and how much more a byte of the budget loses: 0 or less."""
        return deque(maxlen=REMEMBERED)

    def faster(self, choices: Choices, limits: Limits) -> Choices | None:
        """Choices within the limits that train the same in less time, None where none were found. What else could train makes little
        difference to the time, and a search among all for many times as long seldom finds any.
        """
        trained = self._trained(choices.trained)
        lower, upper = trained, self.rows.upper.copy()
        upper[: self.rows.at.gradients] = trained[: self.rows.at.gradients]
        wanted = float(self._seconds @ self.rows.values(choices)) - SECONDS_GAP
        return self.lazy.solve(Problem(self._seconds, SECONDS_GAP, lower, upper, FASTER_SECONDS, wanted=wanted), limits)[0]

    def least_peak(self, limits: Limits) -> tuple[Choices, int] | None:
        """The choices with the lowest peak, and that peak, whatever the budget; None where nothing keeps to the other limits."""
        choices, _ = self.lazy.solve(self._peaks(limits), limits)
        return None if choices is None else (choices, self.timeline.peak_bytes(choices))

    def least_peak_bound(self, limits: Limits) -> float:
        """No choices have a lower peak, in bytes; infinite where nothing keeps to the other limits."""
        solved = self.lazy.relaxed(self._peaks(limits), limits)
        return np.inf if solved is None else solved.costs * self.rows.unit

    @cached_property
    def _any_loss(self) -> Problem:
        return Problem(self._losses, LOSS_GAP, np.zeros(self.rows.columns), self.rows.upper)

    def _peaks(self, limits: Limits) -> Problem:
        costs = 1e-6 * self._losses  # of all the smallest plans, one that loses little
        costs[self.rows.peak] = 1.0
        lower, upper = self._nothing_lost if limits.loss <= 0 else (np.zeros(self.rows.columns), self.rows.upper.copy())
        upper[self.rows.peak] = np.inf
        return Problem(costs, PEAK_GAP * PARTS, lower, upper, any_peak=True)

    @property
    def _nothing_lost(self) -> tuple[Values, Values]:
        """Bounds of the variables where everything trains, and only options without loss are there."""
        return self._trained(self.weight), self.rows.upper * self.rows.lossless

    def _trained(self, names: Iterable[str]) -> Values:
        """The variables' values where these parameters train, and all else is 0."""
        values = np.zeros(self.rows.columns)
        values[[self.rows.at.parameter[name] for name in names]] = 1.0
        return values

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

    def fidelity(self, choices: Choices) -> float:
        """1 − Σ‖g−ĝ‖² / Σ‖g‖², over the trainable parameters."""
        energies, lost = self.rows.energies, self.rows.lost(choices)
        return 1.0 - sum(energies[name] * share for name, share in lost.items()) / sum(energies[name] for name in lost)

    def loss(self, choices: Choices) -> float:
        """Of the objective, what is lost."""
        return sum(self.weight[name] * share for name, share in self.rows.lost(choices).items())
