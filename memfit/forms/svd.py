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

    def restore(self, held: Held, shape: torch.Size, start: int, stop: int) -> Tensor:
        core, factor = held
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

    def restore_bytes(self, shape: tuple[int, ...], itemsize: int, samples: int) -> int:
        return itemsize * samples * prod(shape[1:])
