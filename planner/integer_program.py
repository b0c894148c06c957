"""The choice, for one schedule, as a mixed-integer linear program for HiGHS.

Variables are those of `planner.timeline`; what a parameter loses is a further one, at least its whole energy while it is
frozen, and at least what the forms its gradient is worked out from lose of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, milp
from scipy.sparse import coo_array, csr_array, hstack

from planner.plan import RECOMPUTE
from planner.profile import Option
from planner.request import PlanRequest
from planner.timeline import Choices, Timeline, exact_choices, gradient_flow

TIME_PRICE = 1e-6  # of the energy, for one plain step of extra time: breaks ties, never buys fidelity worth measuring
OPTION_PRICE = 1e-3  # of a plain step: between ways of the same time, the one with fewer options
LOSS_GAP = 1e-3  # of all energy, to which a plan's loss is proved to be the least
SECONDS_GAP = 1e-2  # of the step, the same for an exact plan's time
TIME_LIMIT_SECONDS = 10.0
PARTS = 1000  # rows count in parts of the budget, so that HiGHS's tolerance of 1e-6 is far below a byte
NEIGHBOURS = 24  # moments on either side that a moment is compared with, to drop the rows of those always below another
RETRIES = 3  # of a solution that is a few bytes over, for all that

Values = NDArray[np.float64]
Row = tuple[dict[int, float], float]


@dataclass(frozen=True, slots=True)
class Costs:
    """What is to be least: of each variable.

    Attributes:
        gap: to which it is proved to be the least, of the costs and 1 beside them.
        most: choices that cost more are not looked for.
        seconds: for which HiGHS may search.
    """

    of: Values
    gap: float
    most: float = np.inf
    seconds: float = TIME_LIMIT_SECONDS


@dataclass
class IntegerProgram:
    """The rows of the integer program. Variables: those of the timeline, then the loss of each trainable parameter."""

    timeline: Timeline
    request: PlanRequest
    trainable: tuple[str, ...]

    def __post_init__(self) -> None:
        self.profile, self.step, self.at = self.timeline.profile, self.timeline.step, self.timeline.columns
        energies = {p.name: p.gradient_energy for p in self.profile.parameters if p.name in set(self.trainable)}
        total = sum(energies.values())
        self.share = {name: energy / total for name, energy in energies.items()}
        self.options: dict[int, Option] = {
            column: self.step.activations[a].forms[f].options[o] for column, (a, f, o) in enumerate(self.at.chosen, start=self.at.options)
        }
        self.base = self.at.count
        self.loss_at = {name: self.base + n for n, name in enumerate(self.trainable)}
        self.columns = self.base + len(self.trainable)

    @cached_property
    def _matrix(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return self.timeline.matrix()

    @property
    def constant(self) -> NDArray[np.int64]:
        """Bytes of each moment whatever is chosen."""
        return self._matrix[0]

    @cached_property
    def bytes(self) -> Values:
        """Bytes of each moment for each variable."""
        return np.pad(self._matrix[1].astype(np.float64), ((0, 0), (0, len(self.trainable))))

    @cached_property
    def rows(self) -> tuple[csr_array, Values]:
        """Rows that hold whatever the budget: Σ coefficient · variable ≥ bound."""
        rows = [*self._flow(), *self._cover(), *self._sources(), *self._lose()]
        rows.append(({self.at.parameter[name]: 1.0 for name in self.trainable}, 1.0))  # a plan trains something
        return _sparse([terms for terms, _ in rows], self.columns), np.array([least for _, least in rows])

    @cached_property
    def integral(self) -> NDArray[np.int64]:
        integral = np.zeros(self.columns, dtype=np.int64)
        integral[: self.at.gradients] = 1
        integral[self.at.options : self.base] = 1
        return integral

    def _flow(self) -> Iterator[Row]:
        """A gradient passes an operation that reads a trained parameter, or an output that a gradient passes."""
        at = self.at.gradients
        for i, operation in enumerate(self.step.operations):
            for source in operation.inputs:
                yield {at + i: 1.0, at + source: -1.0}, 0.0
            for name in operation.parameters:
                yield {at + i: 1.0, self.at.parameter[name]: -1.0}, 0.0

    def _cover(self) -> Iterator[Row]:
        """What a holder needs is kept whole, or in an option of a form that serves it."""
        options: dict[tuple[int, int], list[int]] = {}
        for column, (a, f, _) in enumerate(self.at.chosen, start=self.at.options):
            options.setdefault((a, f), []).append(column)
        for a, activation in enumerate(self.step.activations):
            for h, holder in enumerate(activation.holders):
                need = (
                    self.at.parameter[holder.parameter]
                    if holder.needed_for == "weight" and holder.parameter is not None
                    else self.at.gradients + holder.operation
                )
                row = {self.at.wholes + a: 1.0, need: -1.0}
                for f, form in enumerate(activation.forms):
                    if h in form.holders:
                        row |= dict.fromkeys(options.get((a, f), ()), 1.0)
                yield row, 0.0

    def _sources(self) -> Iterator[Row]:
        """What an option is worked out from is kept whole. Of a form one option is enough, so these share a row."""
        rows: dict[tuple[int, int, int], dict[int, float]] = {}
        for column, (a, f, _) in enumerate(self.at.chosen, start=self.at.options):
            for source in self.options[column].sources:
                rows.setdefault((a, f, source), {self.at.wholes + source: 1.0})[column] = -1.0
        yield from ((row, 0.0) for row in rows.values())

    def _lose(self) -> Iterator[Row]:
        """A frozen parameter loses its share; a trained one what its forms lose.

        One row says both, tightly: a form that serves one parameter alone is empty while that is frozen. Another may be full then:
        one shared with others, or whose errors travel to them. So as much as it could lose is taken off.
        """
        lost: dict[str, dict[int, float]] = {name: {} for name in self.trainable}
        shared: dict[str, dict[tuple[int, int], float]] = {name: {} for name in self.trainable}
        for column, (a, f, _) in enumerate(self.at.chosen, start=self.at.options):
            activation = self.step.activations[a]
            served = {activation.holders[h] for h in activation.forms[f].holders}
            alone = len(served) == 1 and all(holder.needed_for == "weight" for holder in served)
            for name, energy in self.options[column].lost_energy.items():
                if name in lost:
                    lost[name][column] = share = min(1.0, energy / self._energy(name))
                    if not alone:
                        shared[name][a, f] = max(shared[name].get((a, f), 0.0), share)
        for name, column in self.loss_at.items():
            share, trained = self.share[name], self.at.parameter[name]
            frozen = share * (1.0 - sum(shared[name].values()))
            yield {column: 1.0, trained: frozen, **{at: -share * each for at, each in lost[name].items()}}, frozen
            if shared[name]:
                yield {column: 1.0, trained: share}, share
        for a, f in {form for forms in shared.values() for form in forms}:
            at = [column for column, option in enumerate(self.at.chosen, start=self.at.options) if option[:2] == (a, f)]
            yield dict.fromkeys(at, -1.0), -1.0

    def _energy(self, name: str) -> float:
        return self.profile.parameters[self.at.parameter[name]].gradient_energy

    @cached_property
    def upper(self) -> Values:
        upper = np.ones(self.columns)
        upper[self.base :] = 1.0 + len(self.options)  # errors that travel may add up to more than the gradient itself
        for parameter, column in self.at.parameter.items():
            upper[column] = parameter in self.loss_at
        for column, option in self.options.items():
            upper[column] = self.request.may_use(option.technique)
        return upper

    @cached_property
    def upper_exact(self) -> Values:
        upper = self.upper.copy()
        for column, option in self.options.items():
            upper[column] *= not option.lost_energy
        return upper

    @cached_property
    def seconds(self) -> Values:
        """Of a plain step, for each variable."""
        seconds = np.zeros(self.columns)
        for column, option in self.options.items():
            seconds[column] = OPTION_PRICE + option.seconds / max(self.profile.plain_seconds, 1e-6)
        return seconds

    @cached_property
    def undominated(self) -> NDArray[np.bool_]:
        """Moments that no other near them exceeds under every choice: the others need no row."""
        count = len(self.constant)
        kept = np.ones(count, dtype=np.bool_)
        for moment in range(count):
            for other in range(max(0, moment - NEIGHBOURS), min(count, moment + NEIGHBOURS + 1)):
                if other == moment or not kept[other]:
                    continue
                least_excess = (
                    self.constant[other] - self.constant[moment] + np.minimum(self.bytes[other] - self.bytes[moment], 0) @ self.upper
                )
                if least_excess >= 0:
                    kept[moment] = False
                    break
        return kept

    @cached_property
    def everything(self) -> Choices:
        """All that may train does, and is kept whole."""
        return exact_choices(self.step, frozenset(self.trainable))

    def exact(self, budget_bytes: int) -> Choices | None:
        """Choices within the budget that train everything and lose nothing, in the least time; None where there are none."""
        if self.timeline.peak_bytes(self.everything) <= budget_bytes:
            return self.everything
        lower = np.zeros(self.columns)
        lower[[self.at.parameter[name] for name in self.trainable]] = 1.0
        solved = self._solve(Costs(self.seconds, SECONDS_GAP), budget_bytes, lower, self.upper_exact)
        return solved and solved[0]

    def least_loss(self, budget_bytes: int, most: float = np.inf, seconds: float = TIME_LIMIT_SECONDS) -> tuple[Choices, float] | None:
        """The choices within the budget that lose least, and the proven least loss of any.

        Args:
            most: a loss that is had already; no choices that lose more are looked for.

        Returns:
            None where nothing fits, or nothing with less loss.
        """
        return self._solve(Costs(self._loss(), LOSS_GAP, most, seconds), budget_bytes, np.zeros(self.columns), self.upper)

    def least_loss_bound(self, budget_bytes: int) -> float:
        """No choices within the budget lose less; infinite where nothing fits. Quick: it lets choices be made by parts."""
        room = budget_bytes - self.constant
        if (room < 0).any():
            return float("inf")
        result = self._milp(Costs(self._loss(), LOSS_GAP), np.zeros(self.columns), self.upper, room, budget_bytes / PARTS, whole=False)
        return float("inf") if result.x is None else float(result.fun) - 1.0

    def _loss(self) -> Values:
        costs = TIME_PRICE * self.seconds
        costs[self.base : self.columns] = 1.0
        return costs

    def _solve(self, costs: Costs, budget_bytes: int, lower: Values, upper: Values) -> tuple[Choices, float] | None:
        """Choices of the least costs within the budget, and the proven bound of costs."""
        room = budget_bytes - self.constant
        for _ in range(RETRIES):
            if (room < 0).any():
                return None
            result = self._milp(costs, lower, upper, room, budget_bytes / PARTS)
            if result.x is None:
                return None
            choices = self.choices(result.x)
            over = self.timeline.peak_bytes(choices) - budget_bytes
            if over <= 0:
                return choices, max(0.0, float(result.mip_dual_bound or 0.0) - 1.0)
            room = room - over
        return None

    def _milp(self, costs: Costs, lower: Values, upper: Values, room: NDArray[np.int64], unit: float, whole: bool = True) -> OptimizeResult:
        """Least costs with each moment's bytes within its room. `whole`: variables of choices are 0 or 1, and not between."""
        tight = self.undominated & (np.maximum(self.bytes, 0) @ upper > room)  # no choice overfills the other moments
        rows, least = self.rows
        constraints = [
            LinearConstraint(_widened(rows), least, np.inf),
            LinearConstraint(_widened(csr_array(self.bytes[tight] / unit)), -np.inf, room[tight] / unit),
        ]
        if costs.most < np.inf:
            constraints.append(LinearConstraint(_widened(csr_array(costs.of[None, :])), -np.inf, costs.most))
        return milp(
            np.append(costs.of, 1.0),  # one more variable, fixed at 1: gaps are relative to the costs and it
            integrality=np.append(self.integral, 0) * whole,
            bounds=Bounds(np.append(lower, 1.0), np.append(upper, 1.0)),
            constraints=constraints,
            options={"mip_rel_gap": costs.gap, "time_limit": costs.seconds},
        )

    def least_peak(self, whole: bool = True, exact: bool = False) -> tuple[Choices, float]:
        """The choices with the lowest peak, and that peak: one more variable, which no moment exceeds. `whole` as in `_milp`: if not,
        the peak is a bound that no choices get below. `exact`: of those that train everything and lose nothing.
        """
        width = self.columns + 1
        unit = max(1.0, float(self.constant.max())) / PARTS
        costs = np.zeros(width)
        costs[-1] = 1.0
        costs[self.base : self.columns] = 1e-6  # of all the smallest plans, one that loses little
        kept = self.undominated
        rows, least = self.rows
        lower, upper = np.zeros(width), np.append(self.upper_exact if exact else self.upper, np.inf)
        lower[[self.at.parameter[name] for name in self.trainable]] = exact
        moments = np.hstack([self.bytes[kept] / unit, np.full((kept.sum(), 1), -1.0)])
        result = milp(
            costs,
            integrality=np.append(self.integral, 0) * whole,
            bounds=Bounds(lower, upper),
            constraints=[
                LinearConstraint(_widened(rows), least, np.inf),
                LinearConstraint(csr_array(moments), -np.inf, -self.constant[kept] / unit),
            ],
            options={"mip_rel_gap": 1e-9, "time_limit": TIME_LIMIT_SECONDS},
        )
        assert result.x is not None, "training one parameter with everything kept whole satisfies every row"
        choices = self.choices(result.x)
        return choices, float(self.timeline.peak_bytes(choices)) if whole else result.x[-1] * unit

    def choices(self, values: Values) -> Choices:
        """Whole choices of a solution, without what no trained parameter needs."""
        trained = frozenset(name for name in self.trainable if values[self.at.parameter[name]] > 0.5)
        needed = exact_choices(self.step, trained).whole
        chosen = {(a, f): o for column, (a, f, o) in enumerate(self.at.chosen, start=self.at.options) if values[column] > 0.5}
        chosen = self._left_over(chosen) | chosen
        passes = gradient_flow(self.step, trained)
        whole: set[int] = set()
        forms: dict[tuple[int, int], int] = {}
        for a in sorted(needed, reverse=True):  # what is worked out comes after its sources
            activation = self.step.activations[a]
            uses = [h.parameter in trained if h.needed_for == "weight" else passes[h.operation] for h in activation.holders]
            held = {
                f: o
                for f in range(len(activation.forms))
                if (o := chosen.get((a, f))) is not None and any(uses[h] for h in activation.forms[f].holders)
            }
            served = {h for f in held for h in activation.forms[f].holders}
            if a in whole or any(use and h not in served for h, use in enumerate(uses)):
                whole.add(a)  # and then the forms would only add to it
            else:
                forms |= {(a, f): o for f, o in held.items()}
                whole |= {source for f, o in held.items() for source in activation.forms[f].options[o].sources}
        return Choices(trained, frozenset(whole), forms)

    def _left_over(self, chosen: dict[tuple[int, int], int]) -> dict[tuple[int, int], int]:
        """What operations keep of their own and do without, since they work themselves out again for some form of an input."""
        of = self.step.activations
        again = {of[a].holders[h].operation for a, f in chosen for h in of[a].forms[f].holders if of[a].holders[h].needed_for == "gradient"}
        return {
            (a, f): o
            for column, (a, f, o) in enumerate(self.at.chosen, start=self.at.options)
            if self.upper[column]
            and self.options[column].technique == RECOMPUTE
            and not self.options[column].settings
            and of[a].holders[of[a].forms[f].holders[0]].operation in again
        }

    def seconds_of(self, choices: Choices) -> float:
        """Seconds of a step: of one with all kept whole, and of the options' own work."""
        options = (self.step.activations[a].forms[f].options[o] for (a, f), o in choices.forms.items())
        return self.timeline.seconds(choices) + sum(option.seconds for option in options)

    @cached_property
    def seconds_of_everything(self) -> float:
        return self.timeline.seconds(self.everything)

    def lost(self, choices: Choices) -> dict[str, float]:
        """Share of all energy that each trainable parameter loses."""
        lost = {name: 0.0 if name in choices.trained else share for name, share in self.share.items()}
        for (a, f), o in choices.forms.items():
            for name, energy in self.step.activations[a].forms[f].options[o].lost_energy.items():
                if name in choices.trained:
                    lost[name] += self.share[name] * energy / self._energy(name)
        return lost


def _sparse(rows: list[dict[int, float]], columns: int) -> csr_array:
    entries = [(row, column, value) for row, terms in enumerate(rows) for column, value in terms.items()]
    row, column, value = zip(*entries, strict=True)
    return csr_array(coo_array((value, (row, column)), shape=(len(rows), columns)))


def _widened(rows: csr_array) -> csr_array:
    """The rows with one more variable, which none of them has."""
    return hstack([rows, csr_array((rows.shape[0], 1))], format="csr")
