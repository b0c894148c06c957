"""Ranks for given bytes: of all ranks of the modes that fit, those that keep the most energy.

The energies of a full core, summed over prefixes, tell what every choice of ranks keeps, exactly, so one pass over them finds the best.
The samples stay whole: their directions in one batch mean nothing in the next.
"""

from math import prod

import torch
from torch import Tensor

from memfit.tucker import as_mode, multiply_mode


def core_energies(x: Tensor, factors: dict[int, Tensor]) -> Tensor:
    """Energy of every entry of the core of `x` in full orthonormal factors (n, n) of its modes, summed over samples.

    A mode without a factor stays as it is: it can only be kept whole.
    """
    core = x.contiguous().float()
    for mode, factor in factors.items():
        core = multiply_mode(as_mode(core, mode, mode + 1), factor.float().mT).view(*core.shape[:mode], -1, *core.shape[mode + 1 :])
    return core.square_().sum(0)


def best_ranks(
    energies: Tensor, whole: tuple[int, ...], samples: int, most_elements: int, per_factor: float = 1.0, nearly: float = 1.0
) -> tuple[int, ...] | None:
    """Ranks of the modes after the samples that keep the most energy in so many elements; None where rank 1 is too much.

    Args:
        energies: from `core_energies`.
        whole: modes (0 the first after the samples) that have no factor and must be kept whole.
        per_factor: what an element of a factor counts, in elements of the core.
        nearly: of all ranks that lose at most so many times the least energy, those of the fewest products are taken.
    """
    sizes = energies.shape
    kept, elements = energies.double(), torch.full(sizes, float(samples), dtype=torch.float64)
    factors = torch.zeros(sizes, dtype=torch.float64)
    for axis, size in enumerate(sizes):
        kept = kept.cumsum(axis)
        ranks = torch.arange(1, size + 1, dtype=torch.float64).view([-1 if a == axis else 1 for a in range(len(sizes))])
        elements = elements * ranks
        factors = factors + torch.where(ranks < size, size * ranks, 0.0)
        if axis in whole:
            kept = torch.where(ranks < size, -1.0, kept)
    kept = torch.where(elements + per_factor * factors <= most_elements, kept, -1.0)
    best = int(kept.argmax())
    most = float(kept.flatten()[best])
    if most < 0:
        return None
    if nearly > 1:
        total = float(energies.double().sum())
        near_TM = (kept >= max(0.0, total - nearly * (total - most))).nonzero()
        return tuple((near_TM[int(products_of(near_TM + 1, sizes).argmin())] + 1).tolist())
    return tuple(int(best // prod(sizes[axis + 1 :]) % size) + 1 for axis, size in enumerate(sizes))


def products_of(ranks_TM: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Multiplications for each element to project on so many directions of each mode, the most shrinking first. Shape (T,)."""
    ranks_TM = ranks_TM.double()
    shares_TM, order_TM = (ranks_TM / torch.tensor(sizes, dtype=torch.float64)).sort(1)
    left_TM = shares_TM.cumprod(1) / shares_TM  # of all elements, when a mode's turn comes
    return (torch.where(shares_TM < 1, ranks_TM.gather(1, order_TM), 0.0) * left_TM).sum(1)
