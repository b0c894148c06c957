"""The rows of the integer program: what every choice keeps to, and what it takes, in one sparse matrix.

Variables are those of `planner.timeline`, then what each trainable parameter loses, then the peak. A parameter loses at least its
whole weight while it is frozen, and at least what the forms its gradient is worked out from lose of it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, hstack, vstack

from planner.highs import Rows, Values
from planner.profile import Option
from planner.timeline import Choices, Timeline, exact_choices, first_served, losses, segments

PARTS = 1000  # of the peak with everything kept, in which rows count bytes: HiGHS's tolerance of 1e-6 is then far below a budget

Row = tuple[dict[int, float], float]
FormAt = tuple[int, int]  # its activation and its place there
Shares = dict[FormAt, dict[int, float]]  # of the objective, by the variable of each option of a form


@dataclass
class ProgramRows:
    """The rows of one schedule.

    Attributes:
        weight: of each trainable parameter in the objective; they sum to 1.
        everything: all that may train does, and is kept whole.
    """

    timeline: Timeline
    weight: dict[str, float]

    def __post_init__(self) -> None:
        self.step, self.at = self.timeline.step, self.timeline.columns
        self.options: dict[int, Option] = {
            column: self.step.activations[a].forms[f].options[o] for column, (a, f, o) in enumerate(self.at.chosen, start=self.at.options)
        }
        self.losses = self.at.count
        self.loss_at = {name: self.losses + n for n, name in enumerate(self.weight)}
        self.peak = self.losses + len(self.weight)
        self.columns = self.peak + 1
        self.energies = {p.name: p.gradient_energy for p in self.timeline.profile.parameters}
        self.everything = exact_choices(self.step, frozenset(self.weight))
        self.unit = max(1, self.timeline.peak_bytes(self.everything)) / PARTS

    @cached_property
    def rows(self) -> Rows:
        """Those that hold for every plan; then the loss; then the seconds. Those of moments come as they are wanted."""
        fixed = [*self._flow(), *self._cover(), *self._sources(), *self._fold(), *self._lose()]
        fixed.append(({self.at.parameter[name]: 1.0 for name in self.weight}, 1.0))  # a plan trains something
        loss: Values = np.zeros(self.columns)
        loss[self.losses : self.peak] = 1.0
        matrix = vstack([_sparse(fixed, self.columns), csr_array(loss[None, :]), csr_array(self.seconds[None, :])], format="csr")
        least = np.array([*(bound for _, bound in fixed), -np.inf, -np.inf])
        return Rows(matrix, least, np.full(len(least), np.inf))

    def most(self, loss: float, seconds: float) -> Values:
        """Upper bounds of these rows for the most loss and seconds."""
        return np.concatenate([self.rows.most[:-2], [loss, seconds - self.forward_seconds]])

    def of_moments(self, moments: Sequence[int]) -> csr_array:
        """What choices add to the bytes of each of these moments, less the peak, in units of `unit`."""
        bytes_MV = self.timeline.matrix(moments) / self.unit
        return hstack([bytes_MV, csr_array((len(moments), len(self.weight))), csr_array(-np.ones((len(moments), 1)))], format="csr")

    def beyond(self, values: Values, room: Values) -> Values:
        """By how much each moment is over its room and the peak, in units of `unit`."""
        over: Values = (self.timeline.chosen_bytes(values[: self.losses]) - room) / self.unit - values[self.peak]
        return over

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
                        row |= dict.fromkeys(self.at.of_form.get((a, f), ()), 1.0)
                yield row, 0.0

    def _sources(self) -> Iterator[Row]:
        """What an option is worked out from is kept whole. Of a form one option is enough, so these share a row."""
        rows: dict[tuple[int, int, int], dict[int, float]] = {}
        for column, (a, f, _) in enumerate(self.at.chosen, start=self.at.options):
            for source in self.options[column].sources:
                rows.setdefault((a, f, source), {self.at.wholes + source: 1.0})[column] = -1.0
        yield from ((row, 0.0) for row in rows.values())

    def _fold(self) -> Iterator[Row]:
        """A norm folds where the convolution's weight trains. Its own weight then loses what forms of the convolution's input lose of it
        too; while it does not fold, as much as it could lose is taken off.
        """
        lost, lost_too = self._lost, self._shares(lambda option: option.folded_energy)
        for fold, option in self.options.items():
            if option.by_gradient_of is None:
                continue
            yield {self.at.parameter[option.by_gradient_of]: 1.0, fold: -1.0}, 0.0
            a, f, _ = self.at.chosen[fold - self.at.options]
            name = first_served(self.step, a, f)
            if name in self.weight and lost_too[name]:
                others = {form: shares for form, shares in lost[name].items() if form != (a, f)}  # which has the fold and no other option
                most = _most(others) + _most(lost_too[name])
                yield {self.loss_at[name]: 1.0, fold: -most, **_negative(others, lost_too[name])}, -most

    def _lose(self) -> Iterator[Row]:
        """A frozen parameter loses its weight; a trained one what its forms lose.

        One row says both, tightly: a form that serves one parameter alone is empty while that is frozen. Another may be full then:
        one shared with others, or whose errors travel to them. So as much as it could lose is taken off.
        """
        for name, loss in self.loss_at.items():
            weight, trained, lost = self.weight[name], self.at.parameter[name], self._lost[name]
            shared = {form: shares for form, shares in lost.items() if form not in self._of_one}
            frozen = weight - _most(shared)
            yield {loss: 1.0, trained: frozen, **_negative(lost)}, frozen
            if shared:
                yield {loss: 1.0, trained: weight}, weight

    @cached_property
    def _of_one(self) -> frozenset[FormAt]:
        """Forms that serve one parameter alone, and no gradient that passes."""
        return frozenset(form for form in self.at.of_form if self._serves_one(form))

    def _serves_one(self, form: FormAt) -> bool:
        a, f = form
        activation = self.step.activations[a]
        served = {activation.holders[h] for h in activation.forms[f].holders}
        return len(served) == 1 and all(holder.needed_for == "weight" for holder in served)

    @cached_property
    def _lost(self) -> dict[str, Shares]:
        return self._shares(lambda option: option.lost_energy)

    def _shares(self, energy: Callable[[Option], dict[str, float]]) -> dict[str, Shares]:
        """Of each trainable parameter, what options lose of the objective."""
        shares: dict[str, Shares] = {name: {} for name in self.weight}
        for form, columns in self.at.of_form.items():
            for column in columns:
                for name, lost in energy(self.options[column]).items():
                    if name in shares:
                        shares[name].setdefault(form, {})[column] = self.weight[name] * min(1.0, lost / self.energies[name])
        return shares

    @cached_property
    def integral(self) -> NDArray[np.bool_]:
        integral = np.zeros(self.columns, dtype=np.bool_)
        integral[: self.at.gradients] = True
        integral[self.at.options : self.losses] = True
        return integral

    @cached_property
    def weights(self) -> Values:
        """Of each parameter in the objective; 0 of one that may not train."""
        weights = np.zeros(self.at.gradients)
        for name, weight in self.weight.items():
            weights[self.at.parameter[name]] = weight
        return weights

    @cached_property
    def upper(self) -> Values:
        """Most of each variable; the peak is none unless it is looked for."""
        upper = np.ones(self.columns)
        upper[self.losses : self.peak] = 1.0 + len(self.options)  # errors that travel may add up to more than the gradient itself
        upper[self.peak] = 0.0
        for parameter, column in self.at.parameter.items():
            upper[column] = parameter in self.loss_at
        return upper

    @cached_property
    def lossless(self) -> NDArray[np.bool_]:
        """Variables that lose nothing where they are 1."""
        lossless = np.ones(self.columns, dtype=np.bool_)
        for column, option in self.options.items():
            lossless[column] = not option.lost_energy
        lossless[self.losses : self.peak] = False
        return lossless

    @cached_property
    def seconds(self) -> Values:
        """Of each variable: a gradient that passes an operation, and an option's own work."""
        seconds = np.zeros(self.columns)
        for i, operation in enumerate(self.step.operations):
            seconds[self.at.gradients + i] = operation.backward_seconds
        for segment in segments(self.timeline.again):
            seconds[self.at.gradients + segment[-1]] += self.timeline.again_seconds(segment)
        for column, option in self.options.items():
            seconds[column] = option.seconds
        return seconds

    def lost(self, choices: Choices) -> dict[str, float]:
        """Share of each trainable parameter's energy that choices lose."""
        lost = {name: 0.0 if name in choices.trained else 1.0 for name in self.weight}
        for of_form in losses(self.step, choices).values():
            for name, energy in of_form.items():
                lost[name] += energy / self.energies[name]
        return lost

    def values(self, choices: Choices) -> Values:
        """The variables' values for choices."""
        values = np.zeros(self.columns)
        values[: self.losses] = self.timeline.variables(choices)
        for name, lost in self.lost(choices).items():
            values[self.loss_at[name]] = self.weight[name] * lost
        return values

    @property
    def forward_seconds(self) -> float:
        """What a step takes whatever is chosen."""
        return sum(operation.forward_seconds for operation in self.step.operations)


def _most(shares: Shares) -> float:
    """All that forms could lose."""
    return sum(max(of_form.values()) for of_form in shares.values())


def _negative(*shares: Shares) -> dict[int, float]:
    """Terms of a row that what is lost is at least."""
    terms: dict[int, float] = {}
    for of_form in (of_form for each in shares for of_form in each.values()):
        for column, share in of_form.items():
            terms[column] = terms.get(column, 0.0) - share
    return terms


def _sparse(rows: list[Row], columns: int) -> csr_array:
    lengths = [len(terms) for terms, _ in rows]
    column = np.fromiter((column for terms, _ in rows for column in terms), np.int64, sum(lengths))
    value = np.fromiter((value for terms, _ in rows for value in terms.values()), np.float64, sum(lengths))
    return csr_array((value, column, np.append(0, np.cumsum(lengths))), shape=(len(rows), columns))
