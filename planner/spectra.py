"""Spectra: the squared singular values of a tensor's unfoldings, from which thresholds become ranks."""

from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from memfit.tucker import decompose_mode
from planner.coding import Coding
from planner.ranks import best_ranks, core_energies

SAMPLES_OF_CORE = 16
LARGEST_GRAM = 2048  # rows of the longest unfolding decomposed; a longer one has no cheap factor anyway


@dataclass(slots=True)
class Spectra:
    """Mean spectra of one value over batches, as shares of its energy.

    Attributes:
        of: for each run of modes (first, last + 1), shares of the energy, largest first; None where it was not measured.
        coding: what transform coding needs to know of it.
        above_zero: of values that are never below, for each batch the share above zero in each sample.
        factors: full factors of the modes after the samples, from the first batch, and `core`: the energies of the core in them.
    """

    shape: tuple[int, ...]
    itemsize: int
    of: dict[tuple[int, int], Tensor]
    coding: Coding
    batches: int = 0
    factors: dict[int, Tensor] = field(default_factory=dict)
    core: Tensor | None = None
    above_zero: list[Tensor] = field(default_factory=list)

    @classmethod
    def of_shape(cls, shape: tuple[int, ...], itemsize: int, feature: int, bounds: tuple[float, ...], work: float) -> "Spectra":
        of = {run: torch.zeros(directions(shape, run), dtype=torch.float64) for run in matricisations(shape)}
        return cls(shape, itemsize, of, Coding(shape, itemsize, feature, bounds, work))

    def add(self, x: Tensor) -> None:
        """Add a batch of the same shape."""
        x = x.detach().contiguous()
        self.batches += 1
        self.coding.add(x)
        if self.coding.bounds[:1] == (0.0,):
            self.above_zero.append(x.flatten(1).gt(0).double().mean(1))
        for run, mean in self.of.items():
            energies, factor = decompose_mode(x, *run)
            total = energies.double().sum()
            if total > 0:
                mean.add_((energies.double() / total - mean) / self.batches)
            if self.core is None and 0 < run[0] == run[1] - 1 and factor.shape[0] == factor.shape[1]:
                self.factors[run[0]] = factor
        if self.core is None:
            self.core = core_energies(x[:SAMPLES_OF_CORE], self.factors)

    def modes(self) -> tuple[tuple[float, ...], ...]:
        """The spectrum of every single mode; empty for a mode too long to be measured."""
        return tuple(tuple(self.of[mode, mode + 1].tolist()) if (mode, mode + 1) in self.of else () for mode in range(len(self.shape)))

    def ranks(self, most_elements: int, per_factor: float = 1.0, nearly: float = 1.0) -> tuple[int, ...] | None:
        """Ranks of the modes after the samples that keep the most energy in so many elements of core and factors, or nearly."""
        assert self.core is not None, "no batch was added"
        whole = tuple(axis for axis in range(len(self.shape) - 1) if axis + 1 not in self.factors)
        return best_ranks(self.core, whole, self.shape[0], most_elements, per_factor, nearly)


def directions(shape: tuple[int, ...], run: tuple[int, int]) -> int:
    """Most directions a matricisation can have: its shorter side."""
    rows = prod(shape[slice(*run)])
    return min(rows, prod(shape) // rows)


def matricisations(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Runs of neighbouring modes that may form the rows: each single mode, and the batch with its next (the other modes' complement).

    Rows longer than LARGEST_GRAM are left out.
    """
    runs = [(mode, mode + 1) for mode in range(len(shape))]
    if len(shape) >= 4:  # batch and channel against space, by its shorter side
        runs.append(min((0, 2), (2, len(shape)), key=lambda run: prod(shape[slice(*run)])))
    return [run for run in runs if prod(shape[slice(*run)]) > 1 and directions(shape, run) <= LARGEST_GRAM]
