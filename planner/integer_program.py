"""The choice as a mixed-integer linear program for HiGHS.

Variables are those of `planner.timeline`; what a parameter loses is a further one, at least its whole energy while it is
frozen, and at least what the forms its gradient is worked out from lose of it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array, csr_array, hstack

from planner.request import PlanRequest
from planner.timeline import Choices, Timeline, exact_choices, gradient_flow

TIME_PRICE = 1e-6  # of the energy, for one plain step of extra time: breaks ties, never buys fidelity worth measuring
GAP = 1e-3  # relative, of the energy lost and the base
GAP_BASE = 0.1  # added to every plan's loss, so that little loss is proved to 1e-4 of all energy and not to a thousandth of itself
TIME_LIMIT_SECONDS = 10.0
PARTS = 1000  # rows count in parts of the budget, so that HiGHS's tolerance of 1e-6 is far below a byte
NEIGHBOURS = 24  # moments on either side that a moment is compared with, to drop the rows of those always below another
RETRIES = 3  # of a solution that is a few bytes over, for all that

Values = NDArray[np.float64]


@dataclass
class IntegerProgram:
    """The rows of the integer program. Variables: those of the timeline, then the loss of each trainable parameter."""

    timeline: Timeline
    request: PlanRequest
    trainable: tuple[str, ...]

    def __post_init__(self) -> None:
        self.profile = self.timeline.profile
        energies = {p.name: p.gradient_energy for p in self.profile.parameters if p.name in set(self.trainable)}
        total = sum(energies.values())
        self.share = {name: energy / total for name, energy in energies.items()}
        self.base = self.timeline.gains.shape[2]
        self.loss_at = {name: self.base + n for n, name in enumerate(self.trainable)}
        self.columns = self.base + len(self.trainable)
        self._rows: list[tuple[dict[int, float], float]] = []  # Σ coefficient · variable ≥ bound
        self._flow()
        self._cover()
        self._lose()
        self._rows.append(({self.timeline.parameter_at[name]: 1.0 for name in self.trainable}, 1.0))  # a plan trains something
        self.rows = _sparse(self._rows, self.columns)
        self.rows_least = np.array([least for _, least in self._rows])
        self.bytes = np.pad(self.timeline.gains.sum(0), ((0, 0), (0, len(self.trainable)))).astype(np.float64)
        self.constant = self.timeline.constant.sum(0)
        self.upper = self._upper()
        self.undominated = self._undominated()
        self.integral = np.zeros(self.columns, dtype=np.int64)
        self.integral[: self.timeline.gradients_at] = 1
        self.integral[self.timeline.options_at : self.base] = 1

    def _flow(self) -> None:
        """A gradient passes an operation that reads a trained parameter, or an output that a gradient passes."""
        at = self.timeline.gradients_at
        for i, operation in enumerate(self.profile.operations):
            for source in operation.inputs:
                self._rows.append(({at + i: 1.0, at + source: -1.0}, 0.0))
            for name in operation.parameters:
                self._rows.append(({at + i: 1.0, self.timeline.parameter_at[name]: -1.0}, 0.0))

    def _cover(self) -> None:
        """What a holder needs is kept whole, or in an option of a form that serves it."""
        options: dict[tuple[int, int], list[int]] = {}
        for column, (a, f, _) in enumerate(self.timeline.options, start=self.timeline.options_at):
            options.setdefault((a, f), []).append(column)
        for a, activation in enumerate(self.profile.activations):
            for h, holder in enumerate(activation.holders):
                need = (
                    self.timeline.parameter_at[holder.parameter]
                    if holder.needed_for == "weight" and holder.parameter is not None
                    else self.timeline.gradients_at + holder.operation
                )
                row = {self.timeline.wholes_at + a: 1.0, need: -1.0}
                for f, form in enumerate(activation.forms):
                    if h in form.holders:
                        row |= dict.fromkeys(options.get((a, f), ()), 1.0)
                self._rows.append((row, 0.0))

    def _lose(self) -> None:
        """A frozen parameter loses its share; a trained one what its forms lose."""
        lost: dict[str, dict[int, float]] = {name: {} for name in self.trainable}
        for column, (a, f, o) in enumerate(self.timeline.options, start=self.timeline.options_at):
            for name, energy in self.profile.activations[a].forms[f].options[o].lost_energy.items():
                if name in lost:
                    whole = self._energy(name)
                    lost[name][column] = self.share[name] * min(1.0, energy / whole)
        for name, column in self.loss_at.items():
            self._rows.append(({column: 1.0, self.timeline.parameter_at[name]: self.share[name]}, self.share[name]))
            if lost[name]:
                self._rows.append(({column: 1.0, **{at: -share for at, share in lost[name].items()}}, 0.0))

    def _energy(self, name: str) -> float:
        return self.profile.parameters[self.timeline.parameter_at[name]].gradient_energy

    def _upper(self) -> Values:
        upper = np.ones(self.columns)
        for parameter, column in self.timeline.parameter_at.items():
            upper[column] = parameter in self.loss_at
        for column, (a, f, o) in enumerate(self.timeline.options, start=self.timeline.options_at):
            upper[column] = self.request.may_use(self.profile.activations[a].forms[f].options[o].technique)
        return upper

    def _undominated(self) -> NDArray[np.bool_]:
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

    def least_loss(self, budget_bytes: int) -> tuple[Choices, float] | None:
        """The best choices within the budget, and the proven least loss of any; None where nothing fits.

        Exact first: where everything can train without loss, a lossy form is not looked at, however little it loses.
        """
        everything = exact_choices(self.profile, frozenset(self.trainable))
        if self.peak_bytes(everything) <= budget_bytes:
            return everything, 0.0
        exact = self._solve(budget_bytes, np.where(self._lossless(), self.upper, 0.0), self._all_trained())
        return exact or self._solve(budget_bytes, self.upper, np.zeros(self.columns))

    def peak_bytes(self, choices: Choices) -> int:
        """The highest predicted footprint, in whole bytes."""
        return max(footprint.total_bytes for footprint in self.timeline.predict(choices))

    def _lossless(self) -> NDArray[np.bool_]:
        lossless = np.ones(self.columns, dtype=np.bool_)
        for column, (a, f, o) in enumerate(self.timeline.options, start=self.timeline.options_at):
            lossless[column] = not self.profile.activations[a].forms[f].options[o].lost_energy
        return lossless

    def _all_trained(self) -> Values:
        lower = np.zeros(self.columns)
        lower[[self.timeline.parameter_at[name] for name in self.trainable]] = 1.0
        return lower

    def _solve(self, budget_bytes: int, upper: Values, lower: Values) -> tuple[Choices, float] | None:
        costs = np.zeros(self.columns + 1)  # the last is the base, fixed at 1
        costs[self.base : self.columns] = 1.0
        costs[-1] = GAP_BASE
        for column, (a, f, o) in enumerate(self.timeline.options, start=self.timeline.options_at):
            costs[column] = TIME_PRICE * (
                1e-3 + self.profile.activations[a].forms[f].options[o].seconds / max(self.profile.plain_seconds, 1e-6)
            )
        room = budget_bytes - self.constant
        if (room < 0).any():
            return None
        unit = budget_bytes / PARTS
        tight = self.undominated & (np.maximum(self.bytes, 0) @ upper > room)  # no choice overfills the other moments
        for _ in range(RETRIES):
            result = milp(
                costs,
                integrality=np.append(self.integral, 0),
                bounds=Bounds(np.append(lower, 1.0), np.append(upper, 1.0)),
                constraints=[
                    LinearConstraint(self._widened(self.rows), self.rows_least, np.inf),
                    LinearConstraint(self._widened(csr_array(self.bytes[tight] / unit)), -np.inf, room[tight] / unit),
                ],
                options={"mip_rel_gap": GAP, "time_limit": TIME_LIMIT_SECONDS},
            )
            if result.x is None:
                return None
            choices = self.choices(result.x)
            over = self.peak_bytes(choices) - budget_bytes
            if over <= 0:
                return choices, max(0.0, min(1.0, float(result.mip_dual_bound or 0.0) - GAP_BASE))
            room = room - over
        return None

    def _widened(self, rows: csr_array) -> csr_array:
        """The rows with one more variable, which none of them has."""
        return hstack([rows, csr_array((rows.shape[0], 1))], format="csr")

    def least_peak(self) -> Choices:
        """The choices with the lowest peak: one more variable, which no moment exceeds."""
        width = self.columns + 1
        unit = max(1.0, float(self.constant.max())) / PARTS
        costs = np.zeros(width)
        costs[-1] = 1.0
        costs[self.base : self.columns] = 1e-6  # of all the smallest plans, one that loses little
        rows = np.hstack([self.bytes / unit, np.full((self.bytes.shape[0], 1), -1.0)])
        result = milp(
            costs,
            integrality=np.append(self.integral, 0),
            bounds=Bounds(np.zeros(width), np.append(self.upper, np.inf)),
            constraints=[
                LinearConstraint(self._widened(self.rows), self.rows_least, np.inf),
                LinearConstraint(csr_array(rows), -np.inf, -self.constant / unit),
            ],
            options={"mip_rel_gap": 1e-9, "time_limit": TIME_LIMIT_SECONDS},
        )
        assert result.x is not None, "training one parameter with everything kept whole satisfies every row"
        return self.choices(result.x)

    def choices(self, values: Values) -> Choices:
        """Whole choices of a solution, without what no trained parameter needs."""
        trained = frozenset(name for name in self.trainable if values[self.timeline.parameter_at[name]] > 0.5)
        needed = exact_choices(self.profile, trained).whole
        chosen = {
            (a, f): o for column, (a, f, o) in enumerate(self.timeline.options, start=self.timeline.options_at) if values[column] > 0.5
        }
        passes = gradient_flow(self.profile, trained)
        whole: set[int] = set()
        forms: dict[tuple[int, int], int] = {}
        for a in needed:
            activation = self.profile.activations[a]
            uses = [h.parameter in trained if h.needed_for == "weight" else passes[h.operation] for h in activation.holders]
            held = {
                f: o
                for f in range(len(activation.forms))
                if (o := chosen.get((a, f))) is not None and any(uses[h] for h in activation.forms[f].holders)
            }
            served = {h for f in held for h in activation.forms[f].holders}
            if any(use and h not in served for h, use in enumerate(uses)):
                whole.add(a)  # and then the forms would only add to it
            else:
                forms |= {(a, f): o for f, o in held.items()}
        return Choices(trained, frozenset(whole), forms)

    def lost(self, choices: Choices) -> dict[str, float]:
        """Share of all energy that each trainable parameter loses."""
        lost = {name: 0.0 if name in choices.trained else share for name, share in self.share.items()}
        for (a, f), o in choices.forms.items():
            for name, energy in self.profile.activations[a].forms[f].options[o].lost_energy.items():
                if name in choices.trained:
                    lost[name] += self.share[name] * energy / self._energy(name)
        return lost


def _sparse(rows: list[tuple[dict[int, float], float]], columns: int) -> csr_array:
    entries = [(row, column, value) for row, (terms, _) in enumerate(rows) for column, value in terms.items()]
    row, column, value = zip(*entries, strict=True)
    return csr_array(coo_array((value, (row, column)), shape=(len(rows), columns)))
