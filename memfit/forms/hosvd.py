"""Tucker form: a core and one factor a truncated mode."""

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from memfit.forms.form import Held
from memfit.tucker import Decompose, decompose_mode, gram_bytes, multiply_mode, truncate_mode


@dataclass(frozen=True, slots=True)
class Hosvd:
    """Tucker core and one factor a mode, by sequentially truncated higher-order SVD.

    Attributes:
        ranks: most directions kept, one number a mode. A mode whose rank is its size is left as it is: it has no factor.
        threshold: share of the energy, for each mode, at which fewer directions suffice.

    Source: arXiv 2411.06346, section 3.3; the sequence of truncations, Vannieuwenhoven et al. 2012.
    """

    technique: ClassVar[str] = "hosvd"
    ranks: tuple[int, ...]
    threshold: float

    def compress(self, x: Tensor, decompose: Decompose = decompose_mode) -> Held:
        core = x.contiguous()
        factors: dict[int, Tensor] = {}
        for mode in self._order(core.shape):
            shape = list(core.shape)
            projected, factors[mode] = truncate_mode(core, mode, mode + 1, self.ranks[mode], self.threshold, decompose)
            shape[mode] = projected.shape[1]
            core = projected.view(shape)
        if not factors:
            core = core.clone()
        return core, *(factors[mode] for mode in sorted(factors))

    def most_directions(self, shape: tuple[int, ...], mode: int) -> int:
        """Most directions that a mode is held in; its size where it is held as it is."""
        return min(self.ranks[mode], shape[mode])

    def directions(self, held: Held, shape: tuple[int, ...], mode: int) -> Tensor:
        """Directions (size, rank) that a mode is held in."""
        return held[1 + sorted(self._order(shape)).index(mode)]

    def restore(self, held: Held, shape: torch.Size, start: int, stop: int, left: int | None = None) -> Tensor:
        """As every form; with `left`, that mode stays in its directions, and the result may be a view of what is held."""
        core, *factors = held
        truncated = sorted(self._order(shape))
        if 0 in truncated:
            factors[0] = factors[0][start:stop]
        else:
            core = core[start:stop]
        # Grow the mode that grows least first: the dense tensor comes last.
        for mode, factor in sorted(zip(truncated, factors, strict=True), key=lambda pair: pair[1].shape[0] / pair[1].shape[1]):
            if mode == left:
                continue
            sizes = list(core.shape)
            core_LNR = core.reshape(prod(sizes[:mode]), sizes[mode], prod(sizes[mode + 1 :]))
            sizes[mode] = factor.shape[0]
            core = multiply_mode(core_LNR, factor).view(sizes)
        return core if truncated else core.clone()

    def held_bytes(self, shape: tuple[int, ...], itemsize: int) -> int:
        ranks = [min(rank, size) for rank, size in zip(self.ranks, shape, strict=True)]
        factors = sum(size * rank for size, rank in zip(shape, ranks, strict=True) if rank < size)
        return itemsize * (prod(ranks) + factors)

    def compress_bytes(self, shape: tuple[int, ...], itemsize: int) -> int:
        sizes, most, before = list(shape), 0, 0
        for mode in self._order(shape):
            workspace = gram_bytes(sizes[mode], itemsize)
            sizes[mode] = self.ranks[mode]
            most, before = max(most, before + itemsize * prod(sizes) + workspace), itemsize * prod(sizes)
        return max(most, self.held_bytes(shape, itemsize))

    def restore_bytes(self, shape: tuple[int, ...], itemsize: int, samples: int, left: int | None = None) -> int:
        ranks = [min(rank, size) for rank, size in zip(self.ranks, shape, strict=True)]
        if left is not None:
            shape = (*shape[:left], ranks[left], *shape[left + 1 :])
            if tuple(ranks) == shape:
                return 0
        growth = max((size / rank for rank, size in zip(ranks[1:], shape[1:], strict=True)), default=1.0)
        dense = itemsize * samples * prod(shape[1:])
        return dense + int(dense / growth)  # the mode that grows most comes last, from what was before it

    def _order(self, shape: tuple[int, ...]) -> list[int]:
        """Modes to truncate, most shrinking first, so that the later ones work on little."""
        modes = [mode for mode, size in enumerate(shape) if self.ranks[mode] < size]
        return sorted(modes, key=lambda mode: self.ranks[mode] / shape[mode])
