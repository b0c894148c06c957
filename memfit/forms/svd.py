"""Truncated singular value decomposition of one matricisation."""

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from memfit.forms.form import Held
from memfit.tucker import Decompose, decompose_mode, gram_bytes, multiply_mode, truncate_mode


@dataclass(frozen=True, slots=True)
class Svd:
    """Truncated singular value decomposition of one matricisation: modes first..last-1 against all others.

    Attributes:
        modes: first and last+1 of the run of modes that forms the rows.
        rank: most directions kept.
        threshold: share of the energy at which fewer directions suffice.

    Source: arXiv 2411.06346, section 3.2, there for the first mode alone.
    """

    technique: ClassVar[str] = "svd"
    modes: tuple[int, int]
    rank: int
    threshold: float

    def compress(self, x: Tensor, decompose: Decompose = decompose_mode) -> Held:
        start, stop = self.modes
        core_LRR, factor_NR = truncate_mode(x.contiguous(), start, stop, self.rank, self.threshold, decompose)
        return core_LRR, factor_NR

    def most_directions(self, shape: tuple[int, ...], mode: int) -> int:
        """Most directions that a mode is held in; its size where it is held as it is."""
        return min(self.rank, shape[mode], prod(shape) // shape[mode]) if self.modes == (mode, mode + 1) else shape[mode]

    def directions(self, held: Held, shape: tuple[int, ...], mode: int) -> Tensor:
        """Directions (size, rank) that a mode is held in."""
        assert self.modes == (mode, mode + 1)
        return held[1]

    def restore(self, held: Held, shape: torch.Size, start: int, stop: int, left: int | None = None) -> Tensor:
        """As every form; with `left`, that mode stays in its directions, and the result may be a view of what is held."""
        core, factor = held
        if left is not None:
            core = core.view(*shape[:left], factor.shape[1], *shape[left + 1 :])
            return core[start:stop]
        if self.modes[0] == 0:
            factor = factor.view(shape[0], -1, factor.shape[1])[start:stop].flatten(0, 1)
        else:
            core = core.view(shape[0], -1, *core.shape[1:])[start:stop].flatten(0, 1)
        return multiply_mode(core, factor).view(stop - start, *shape[1:])

    def held_bytes(self, shape: tuple[int, ...], itemsize: int) -> int:
        size = prod(shape[self.modes[0] : self.modes[1]])
        rest = prod(shape) // max(size, 1)
        return itemsize * min(self.rank, size, rest) * (size + rest)

    def compress_bytes(self, shape: tuple[int, ...], itemsize: int) -> int:
        size = prod(shape[self.modes[0] : self.modes[1]])
        return gram_bytes(size, itemsize) + self.held_bytes(shape, itemsize)

    def restore_bytes(self, shape: tuple[int, ...], itemsize: int, samples: int, left: int | None = None) -> int:
        return itemsize * samples * prod(shape[1:]) if left is None else 0
