"""The footprint at every moment of a step, as a linear function of a plan's choices.

Every storage, form and gradient lives for one run of the moments, in order, so each choice adds its bytes to such runs, and the
same runs predict a plan's footprint and constrain the solver.
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from planner.plan import KEEP, SLICES, Footprint, Schedule
from planner.profile import Moment, Profile, Step
from planner.request import Optimizer

Bytes = NDArray[np.int64]
T = TypeVar("T", np.int64, np.float64)
Kind = Literal["static", "saved", "transient"]
KINDS: tuple[Kind, ...] = ("static", "saved", "transient")
PLACE = {kind: at for at, kind in enumerate(KINDS)}
ALWAYS = -1  # the column of bytes that no choice changes


@dataclass(frozen=True, slots=True)
class Choices:
    """What a plan decides. Activations, forms and options by index in the step.

    Attributes:
        trained: names of the parameters.
        whole: activations kept whole.
        forms: option for each (activation, form) that is held in one.
    """

    trained: frozenset[str]
    whole: frozenset[int]
    forms: dict[tuple[int, int], int]


@dataclass
class Columns:
    """The variables a plan decides, 0 or 1 each, in order: each parameter trained; a gradient passing each operation; each
    activation whole; each option. `of_form`: those of the options of each form, by activation and form.
    """

    profile: Profile
    step: Step

    def __post_init__(self) -> None:
        self.parameter = {parameter.name: at for at, parameter in enumerate(self.profile.parameters)}
        self.gradients = len(self.profile.parameters)
        self.wholes = self.gradients + len(self.step.operations)
        self.options = self.wholes + len(self.step.activations)
        self.chosen = tuple(
            (a, f, o)
            for a, activation in enumerate(self.step.activations)
            for f, form in enumerate(activation.forms)
            for o in range(len(form.options))
        )
        self.count = self.options + len(self.chosen)
        self.of_form: dict[tuple[int, int], range] = {}
        for column, (a, f, o) in enumerate(self.chosen, start=self.options):
            self.of_form[a, f] = range(column - o, column + 1)


@dataclass
class Timeline:
    """Runs of moments in which bytes live, each for one variable.

    Attributes:
        step: what the variables refer to.
        again: the last operations of the segments that run a second time if a gradient passes these; () in steps that run all once.
    """

    profile: Profile
    optimizer: Optimizer
    schedule: Schedule
    step: Step
    moments: tuple[Moment, ...]
    again: tuple[int, ...] = ()
    _runs: "array[int]" = field(default_factory=lambda: array("q"))  # five numbers each: tuples would keep the garbage collector busy

    @cached_property
    def columns(self) -> Columns:
        return Columns(self.profile, self.step)

    @cached_property
    def row(self) -> dict[Moment, int]:
        return {moment: number for number, moment in enumerate(self.moments)}

    @cached_property
    def readers(self) -> dict[str, list[int]]:
        return readers_of(self.step)

    def add(self, kind: Kind, first: int, last: int, column: int, size: int) -> None:
        """Bytes that live from row `first` to row `last` where the variable of `column` is 1."""
        if size and first <= last:
            self._runs.extend((PLACE[kind], first, last + 1, column, size))

    def add_each(self, kind: Kind, first: int, last: int, column: int, sizes: Iterable[int]) -> None:
        """The same for several variables in a row, from that of `column` on."""
        place, after = PLACE[kind], last + 1
        for at, size in enumerate(sizes, start=column):
            if size:
                self._runs.extend((place, first, after, at, size))

    @cached_property
    def _arrays(self) -> tuple[Bytes, ...]:
        return tuple(np.array(self._runs, dtype=np.int64).reshape(-1, 5).T.copy())

    @cached_property
    def always(self) -> Bytes:
        """Bytes of each moment that no choice changes."""
        return self._summed(self._arrays[4] * (self._arrays[3] == ALWAYS))

    def chosen_bytes(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Bytes of each moment beyond those, for any values of the variables between 0 and 1."""
        _, _, _, column, size = self._arrays
        return self._summed(size * np.append(values, 0.0)[column])

    def _summed(self, size: NDArray[T]) -> NDArray[T]:
        """Of bytes of each run, those of each moment."""
        _, first, after, _, _ = self._arrays
        steps = np.zeros(len(self.moments) + 1, dtype=size.dtype)
        np.add.at(steps, first, size)
        np.add.at(steps, after, -size)
        return np.cumsum(steps[:-1])

    def matrix(self, moments: Sequence[int]) -> csr_array:
        """Bytes that each variable adds at some moments: (moments, variables)."""
        _, first, after, column, size = self._arrays
        live = [np.flatnonzero((first <= moment) & (moment < after) & (column != ALWAYS)) for moment in moments]
        ends = np.append(0, np.cumsum([len(runs) for runs in live]))
        runs = np.concatenate([*live, np.empty(0, dtype=np.int64)])
        matrix = csr_array((size[runs].astype(np.float64), column[runs], ends), shape=(len(moments), self.columns.count))
        matrix.sum_duplicates()
        return matrix

    def variables(self, choices: Choices) -> Bytes:
        """The variables' values for a plan's choices."""
        columns = self.columns
        values = np.zeros(columns.count, dtype=np.int64)
        for name in choices.trained:
            values[columns.parameter[name]] = 1
        for at, passes in enumerate(gradient_flow(self.step, choices.trained)):
            values[columns.gradients + at] = passes
        for at in choices.whole:
            values[columns.wholes + at] = 1
        for form, option in choices.forms.items():
            values[columns.of_form[form][option]] = 1
        return values

    def bytes(self, choices: Choices) -> Bytes:
        """Bytes of each kind at every moment."""
        kind, _, _, column, size = self._arrays
        size = size * np.append(self.variables(choices), 1)[column]
        return np.stack([self._summed(size * (kind == of)) for of in range(len(KINDS))])

    def peak_bytes(self, choices: Choices) -> int:
        """The highest predicted footprint."""
        return int(self.bytes(choices).sum(0).max())

    def seconds(self, choices: Choices) -> float:
        """Of a step with all kept whole, its update left out."""
        operations, passes = self.step.operations, gradient_flow(self.step, choices.trained)
        forward = sum(operation.forward_seconds for operation in operations)
        backward = sum(operation.backward_seconds for operation, passed in zip(operations, passes, strict=True) if passed)
        return forward + backward + sum(self.again_seconds(segment) for segment in segments(self.again) if passes[segment[-1]])

    def again_seconds(self, segment: range) -> float:
        """Of the second forward of a segment."""
        return sum(operation.forward_seconds for operation in self.step.operations[segment.start : segment.stop])

    @property
    def runs(self) -> tuple[tuple[int, int, int, int, int], ...]:
        """Kind (its place in `KINDS`), first row, the row after the last, variable, bytes."""
        return tuple(zip(*(each.tolist() for each in self._arrays), strict=True))

    def predict(self, choices: Choices) -> tuple[Footprint, ...]:
        """Footprint at every moment."""
        saved = self._saved_by_technique(choices)
        by_technique = zip(*(size.tolist() for size in saved.values()), strict=True) if saved else [()] * len(self.moments)
        return tuple(
            Footprint(moment, static, held, transient, {name: size for name, size in zip(saved, sizes, strict=True) if size})
            for moment, (static, held, transient), sizes in zip(self.moments, self.bytes(choices).T.tolist(), by_technique, strict=True)
        )

    def _saved_by_technique(self, choices: Choices) -> dict[str, Bytes]:
        """Bytes held in each technique, at every moment; what a step has at its splits counts as slices."""
        kind, _, _, column, size = self._arrays
        options = (self.step.activations[a].forms[f].options[o].technique for a, f, o in self.columns.chosen)
        technique = np.array([*[KEEP] * self.columns.options, *options, SLICES])[column]
        size = size * np.append(self.variables(choices), 1)[column] * (kind == KINDS.index("saved"))
        return {str(name): self._summed(size * (technique == name)) for name in np.unique(technique[size > 0])}


def segments(cuts: tuple[int, ...]) -> list[range]:
    """Operations up to each cut, from the one before it on."""
    return [range(before + 1, cut + 1) for before, cut in pairwise((-1, *cuts))]


def readers_of(step: Step) -> dict[str, list[int]]:
    """For each parameter that an operation reads, the operations that do."""
    readers: dict[str, list[int]] = {}
    for i, operation in enumerate(step.operations):
        for name in dict.fromkeys(operation.parameters):
            readers.setdefault(name, []).append(i)
    return readers


def gradient_flow(step: Step, trained: frozenset[str]) -> list[bool]:
    """For each operation, whether a gradient passes it: it reads a trained parameter, or an output that needs one."""
    passes: list[bool] = []
    for operation in step.operations:
        passes.append(not trained.isdisjoint(operation.parameters) or any(map(passes.__getitem__, operation.inputs)))
    return passes


def first_served(step: Step, a: int, f: int) -> str | None:
    """The parameter whose gradient the first holder of a form needs it for."""
    activation = step.activations[a]
    return activation.holders[activation.forms[f].holders[0]].parameter


def losses(step: Step, choices: Choices) -> dict[tuple[int, int], dict[str, float]]:
    """Energy that each held form, by activation and form, loses of trained parameters."""
    held = {(a, f): step.activations[a].forms[f].options[o] for (a, f), o in choices.forms.items()}
    folded = {first_served(step, a, f) for (a, f), option in held.items() if option.by_gradient_of is not None}
    lost: dict[tuple[int, int], dict[str, float]] = {}
    for at, option in held.items():
        of_form = lost[at] = {}
        by_fold = ((name, energy) for name, energy in option.folded_energy.items() if name in folded)
        for name, energy in (*option.lost_energy.items(), *by_fold):
            if name in choices.trained:
                of_form[name] = of_form.get(name, 0.0) + energy
    return lost


def exact_choices(step: Step, trained: frozenset[str]) -> Choices:
    """Keep whole whatever the trained parameters need."""
    passes = gradient_flow(step, trained)
    needed = (
        at
        for at, activation in enumerate(step.activations)
        if any(h.parameter in trained if h.needed_for == "weight" else passes[h.operation] for h in activation.holders)
    )
    return Choices(trained, frozenset(needed), {})
