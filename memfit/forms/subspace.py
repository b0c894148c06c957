"""Tucker core in factors that follow the data: an iteration every few passes improves them, and nothing is decomposed."""

from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from memfit.forms.basis import Basis
from memfit.forms.form import Held
from memfit.tucker import Decompose, as_mode, decompose_mode, multiply_mode


@dataclass(frozen=True, slots=True, eq=False)
class Subspace(Basis):
    """The projection on directions of every mode but the samples, from one subspace iteration on those before.

    The first factors are shipped. `compress` leaves `factors` as they are and holds its own, which `memfit.operators.held.Hold`
    takes over for the passes to come; another number of samples does not matter, since the samples have no factor. Modes are worked on
    one after the other, the most shrinking first, each in the core that the others before it left.

    Attributes:
        every: passes from one iteration to the next. Those between hold `between`.

    Source: arXiv 2505.05086 (ASI), there in every step, and with all modes from the whole tensor.
    """

    technique: ClassVar[str] = "subspace"
    every: int = 1

    @property
    def between(self) -> Basis:
        return Basis(self.sizes, self.ranks, self.factors)

    def compress(self, x: Tensor, decompose: Decompose = decompose_mode) -> Held:
        core, before, found = x.contiguous(), self._factors(x.dtype), {}
        work = torch.float64 if x.dtype == torch.float64 else torch.float32
        for mode in self._order():
            whole_LNR = as_mode(core, mode, mode + 1)
            projected_LRR = multiply_mode(whole_LNR, before[mode].mT)
            iterated_NR = torch.zeros(whole_LNR.shape[1], projected_LRR.shape[1], dtype=work, device=x.device)
            for samples in range(x.shape[0]):  # a sample is a run of the first axis, whatever the mode
                run = slice(samples * whole_LNR.shape[0] // x.shape[0], (samples + 1) * whole_LNR.shape[0] // x.shape[0])
                whole, projected = whole_LNR[run].to(work), projected_LRR[run].to(work)
                # The last mode has columns of one: a product for each would be as many matrices (N, R).
                one = whole.shape[2] == 1
                iterated_NR += whole[:, :, 0].mT @ projected[:, :, 0] if one else (whole @ projected.mT).sum(0)
            factor = torch.linalg.qr(iterated_NR)[0].to(x.dtype)
            # A tensor of few directions leaves the others of the factor to chance: those before are as good.
            found[mode] = torch.where(factor.isfinite().all(), factor, before[mode])
            shape = (*core.shape[:mode], self.ranks[mode - 1], *core.shape[mode + 1 :])
            core = multiply_mode(whole_LNR, found[mode].mT).view(shape)
        flat = [found[mode].flatten() for mode in sorted(found)]
        return core if found else core.clone(), torch.cat(flat) if flat else x.new_empty(0)

    def directions(self, held: Held, shape: tuple[int, ...], mode: int) -> Tensor:
        return replace(self.between, factors=held[1]).directions(held, shape, mode)

    def restore(self, held: Held, shape: torch.Size, start: int, stop: int, left: int | None = None) -> Tensor:
        core, factors = held
        return replace(self.between, factors=factors).restore((core,), shape, start, stop, left)

    def held_bytes(self, shape: tuple[int, ...], itemsize: int) -> int:
        return itemsize * (shape[0] * prod(self.ranks) + self.factors.numel())

    def compress_bytes(self, shape: tuple[int, ...], itemsize: int) -> int:
        # Beside the cores: a sample of either widened, its products, and QR's own.
        sizes, products = list(self.sizes), 0
        for mode in self._order():
            matrices = prod(sizes[: mode - 1]) if mode < len(sizes) else 1
            products, sizes[mode - 1] = max(products, matrices * sizes[mode - 1] * self.ranks[mode - 1]), self.ranks[mode - 1]
        own = 2 * prod(self.sizes) + products + 6 * self.factors.numel()
        return Basis.compress_bytes(self, shape, itemsize) + max(4, itemsize) * own + 65536
