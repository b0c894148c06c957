"""How many bits each coefficient gets: reverse water-filling for quantisers of whole bits.

A quantiser of b bits leaves the share loss[b] of a coefficient's variance. The bits that lose least in all are, for some price
λ a bit, the b that minimises variance · loss[b] + λ b for each coefficient by itself; the lowest λ that meets the bytes is looked for.
Deviations are told in eighths of an octave, one byte each, so what is decided is a table of 256 widths: it follows from the deviations
and the bytes, and need not be stored.

Sources: reverse water-filling, Cover & Thomas, section 10.3; allotment for given quantisers, Shoham & Gersho 1988.
"""

from bisect import bisect_left
from collections.abc import Iterable
from functools import cache, lru_cache
from itertools import accumulate, groupby, pairwise
from math import ceil, log2

import torch
from torch import Tensor

from memfit.packing import packed_row_bytes
from memfit.quantisers import quantisers

OCTAVE = 8  # steps of a deviation's code to a factor of 2
CODES = 256


def code_deviations(deviations: Tensor) -> tuple[Tensor, float]:
    """Deviations as bytes and the one that byte 255 means. The smallest bytes stand for all smaller deviations too."""
    largest = float(deviations.max()) if deviations.numel() else 0.0
    if largest <= 0:
        return torch.zeros(deviations.shape, dtype=torch.uint8, device=deviations.device), 0.0
    octaves = torch.log2((deviations / largest).clamp_min(2.0 ** -(CODES / OCTAVE)))
    return (octaves * OCTAVE).round().add(CODES - 1).clamp(0, CODES - 1).to(torch.uint8), largest


def deviations_of_codes(largest: float, like: Tensor) -> Tensor:
    """The deviation that each byte means. Shape (256,), type and device of `like`."""
    codes = torch.arange(CODES, dtype=torch.float64)
    return (largest * torch.exp2((codes - (CODES - 1)) / OCTAVE)).to(like.device, like.dtype)


@lru_cache(maxsize=1024)
def allot(counts: tuple[int, ...], blocks: int, sample_bytes: int, dither: bool) -> tuple[int, ...]:
    """The width in bits for each code: 256 of them, none smaller than one before it.

    Args:
        counts: positions that have each code. 256 numbers.
        blocks: coefficients of each position in a sample.
        sample_bytes: most bytes that the packed coefficients of one sample may take.
        dither: of which quantisers, as `quantisers` says.
    """
    below = [0, *accumulate(counts)]
    ladder, widths_of = _ladder(dither), quantisers(dither)
    cheapest = bisect_left(ladder, True, hi=len(ladder) - 1, key=lambda at: _packed_bytes(at, widths_of, below, blocks) <= sample_bytes)
    ends = [*ladder[cheapest], CODES]
    widths = zip(widths_of, ends, ends[1:], strict=False)
    return (0,) * ends[0] + tuple(w for width, start, end in widths for w in [width] * (end - start))


def lost_share(counts: tuple[int, ...], widths: tuple[int, ...], dither: bool) -> float:
    """The share of all energy that these widths lose."""
    known = quantisers(dither)
    energies = [count * energy for count, energy in zip(counts, _ENERGIES, strict=True)]
    lost = sum(energy * (known[width].loss if width else 1.0) for energy, width in zip(energies, widths, strict=True) if energy)
    return lost / sum(energies) if any(counts) else 0.0


@cache
def _ladder(dither: bool) -> list[list[int]]:
    """The first codes of all prices, from the lowest, at which most bits are given, to those at which none are."""
    gains = _gains(dither)
    prices = sorted({gain + (code - (CODES - 1)) * 2 / OCTAVE for gain in gains for code in range(CODES + 1)})
    between = [prices[0] - 1.0, *((one + other) / 2 for one, other in pairwise(prices)), prices[-1] + 1.0]
    return [first for first, _ in groupby(_first_codes(price, gains) for price in between)]


def _first_codes(price: float, gains: list[float]) -> list[int]:
    """For each width, the first code that gets it or a larger one, at 2**price a bit.

    A larger width pays from where variance · (loss of the smaller − loss of the larger) is the price of the bits between. Code 0, which
    also stands for nothing at all, gets no bits.
    """
    return [max(1, min(CODES, ceil(CODES - 1 + OCTAVE / 2 * (price - gain)))) for gain in gains]


def _packed_bytes(first: list[int], widths: Iterable[int], below: list[int], blocks: int) -> int:
    ends = [*first[1:], CODES]
    return sum(packed_row_bytes((below[end] - below[start]) * blocks, width) for width, start, end in zip(widths, first, ends, strict=True))


@cache
def _gains(dither: bool) -> list[float]:
    """log2 of what a bit gains on the way from each width to the next; falling, so widths grow in order."""
    steps = pairwise([(0, 1.0), *((width, each.loss) for width, each in quantisers(dither).items())])
    return [log2((loss - less) / (more - width)) for (width, loss), (more, less) in steps]


_ENERGIES = [2.0 ** ((code - (CODES - 1)) * 2 / OCTAVE) for code in range(CODES)]  # of a position of each code
