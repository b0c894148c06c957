"""Tucker core in fixed factors that the checkpoint ships: nothing is decomposed on the device."""

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from memfit.forms.form import Held
from memfit.tucker import Decompose, as_mode, decompose_mode, multiply_mode


@dataclass(frozen=True, slots=True, eq=False)
class Basis:
    """The projection on fixed directions of every mode but the samples.

    Attributes:
        sizes, ranks: of the modes after the samples. A mode whose rank is its size is left as it is: it has no factor.
        factors: of the other modes in order, one after the other, each (size, rank) with orthonormal columns.

    Source: LANCE, arXiv 2509.21617.
    """

    technique: ClassVar[str] = "basis"
    sizes: tuple[int, ...]
    ranks: tuple[int, ...]
    factors: Tensor

    def compress(self, x: Tensor, decompose: Decompose = decompose_mode) -> Held:
        core = x.contiguous()
        factors = self._factors(x.dtype)
        for mode in self._order():
            shape = (*core.shape[:mode], self.ranks[mode - 1], *core.shape[mode + 1 :])
            core = multiply_mode(as_mode(core, mode, mode + 1), factors[mode].mT).view(shape)
        return (core if factors else core.clone(),)

    def most_directions(self, shape: tuple[int, ...], mode: int) -> int:
        """Directions that a mode is held in; its size where it is held as it is."""
        return self.ranks[mode - 1]

    def directions(self, held: Held, shape: tuple[int, ...], mode: int) -> Tensor:
        """Directions (size, rank) that a mode is held in."""
        return self._factors(held[0].dtype)[mode]

    def restore(self, held: Held, shape: torch.Size, start: int, stop: int, left: int | None = None) -> Tensor:
        """As every form; with `left`, that mode stays in its directions, and the result may be a view of what is held."""
        x = held[0][start:stop]
        factors = self._factors(x.dtype)
        for mode in reversed(self._order()):
            if mode == left:
                continue
            grown = (*x.shape[:mode], self.sizes[mode - 1], *x.shape[mode + 1 :])
            x = multiply_mode(as_mode(x, mode, mode + 1), factors[mode]).view(grown)
        return x if factors else x.clone()

    def held_bytes(self, shape: tuple[int, ...], itemsize: int) -> int:
        return itemsize * shape[0] * prod(self.ranks)

    def compress_bytes(self, shape: tuple[int, ...], itemsize: int) -> int:
        sizes, most, before = list(self.sizes), 0, 0
        for mode in self._order():
            sizes[mode - 1] = self.ranks[mode - 1]
            now = itemsize * shape[0] * prod(sizes)
            most, before = max(most, before + now), now
        return max(most, self.held_bytes(shape, itemsize)) + itemsize * self.factors.numel()

    def restore_bytes(self, shape: tuple[int, ...], itemsize: int, samples: int, left: int | None = None) -> int:
        order = [mode for mode in self._order() if mode != left]
        dense = itemsize * samples * prod(self.sizes)
        if left is not None:
            dense = dense * self.ranks[left - 1] // self.sizes[left - 1] if order else 0
        last = dense * self.ranks[order[0] - 1] // self.sizes[order[0] - 1] if order else 0
        return dense + last + itemsize * self.factors.numel()

    def _order(self) -> list[int]:
        """Modes that have factors, most shrinking first."""
        modes = [mode for mode, (size, rank) in enumerate(zip(self.sizes, self.ranks, strict=True), start=1) if rank < size]
        return sorted(modes, key=lambda mode: self.ranks[mode - 1] / self.sizes[mode - 1])

    def _factors(self, dtype: torch.dtype) -> dict[int, Tensor]:
        factors, at = {}, 0
        for mode in sorted(self._order()):
            size, rank = self.sizes[mode - 1], self.ranks[mode - 1]
            factors[mode] = self.factors[at : at + size * rank].view(size, rank).to(dtype)
            at += size * rank
        return factors
