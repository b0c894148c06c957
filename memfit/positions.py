"""Positions of coefficients by the bits they get, and their places in a packed sample."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from memfit.allotment import CODES, allot, deviations_of_codes
from memfit.packing import pack_rows, packed_row_bytes, unpack_rows
from memfit.quantisers import bent, meant, quantisers

if TYPE_CHECKING:
    from memfit.native import NativeCoder


class Positions:
    """What the bits and the steps of every position are.

    It lives as long as its table, so what can be worked out again quickly is not kept.

    Attributes:
        blocks: coefficients of each position in a sample.
        dither: they are rounded at random.
        widths: bits of each position. Shape (P,).
        row_bytes: of a packed sample.
        largest_group: the share of the positions that the most frequent width has.
        coders: `memfit.native.NativeCoder` of each grid, where there are some.
    """

    def __init__(self, deviations: Tensor, largest: float, blocks: int, sample_bytes: int, dither: bool) -> None:
        counts = tuple(torch.bincount(deviations, minlength=CODES).tolist())
        by_code = allot(counts, blocks, sample_bytes, dither)
        self.blocks, self.dither, self.count = blocks, dither, deviations.numel()
        self.coders: dict[tuple[int, ...], NativeCoder] = {}
        self._codes, self._largest = deviations.clone(), largest
        self.widths = torch.tensor(by_code, dtype=torch.uint8, device=deviations.device)[deviations.int()]
        of_widths = {width: sum(n for n, each in zip(counts, by_code, strict=True) if each == width) for width in sorted({*by_code} - {0})}
        self._counts = {width: count for width, count in of_widths.items() if count}
        self.row_bytes = sum(packed_row_bytes(blocks * count, width) for width, count in self._counts.items())
        self.largest_group = max(self._counts.values(), default=0) / max(1, self.count)

    @property
    def nbytes(self) -> int:
        """Of all tensors that are kept."""
        return self.widths.nbytes + self._codes.nbytes + sum(coder.nbytes for coder in self.coders.values())

    def deviations(self, dtype: torch.dtype) -> Tensor:
        """Of each position, relative to the gain. Shape (P,)."""
        of_codes = deviations_of_codes(self._largest, torch.empty(0, dtype=torch.float64, device=self._codes.device))
        return of_codes.to(dtype)[self._codes.int()]

    def groups(self, dtype: torch.dtype = torch.float64) -> Iterator[tuple[int, Tensor, Tensor, int]]:
        """For each width that occurs: its positions, their deviations, and the first of its bytes in a packed sample."""
        deviations, at = self.deviations(dtype), 0
        for width, count in self._counts.items():
            positions = (self.widths == width).nonzero()[:, 0]
            yield width, positions, deviations[positions], at
            at += packed_row_bytes(self.blocks * count, width)

    def pack(self, values: Tensor, out: Tensor) -> None:
        """Quantise coefficients (samples, P, M), relative to their gains, into rows of bytes."""
        for width, positions, deviations, at in self.groups():
            quantiser = quantisers(self.dither)[width]
            chosen = values.index_select(1, positions).div_((deviations * quantiser.step).to(values.dtype)[:, None])
            if self.dither:
                chosen.add_(torch.rand_like(chosen))
            chosen = bent(chosen, quantiser.bend).add_(2.0 ** (width - 1))
            chosen.clamp_(0, 2.0**width - 0.5)  # and truncating to whole numbers rounds down
            whole = chosen.nan_to_num_(0.0).to(torch.uint8 if width <= 8 else torch.int32)
            del chosen
            pack_rows(whole.flatten(1), width, out[:, at : at + packed_row_bytes(whole[0].numel(), width)])

    def unpack(self, codes: Tensor, gains: Tensor) -> Tensor:
        """Coefficients (samples, P, M) times their gains."""
        values = torch.zeros(codes.shape[0], self.count, self.blocks, dtype=gains.dtype, device=gains.device)
        for width, positions, deviations, at in self.groups(values.dtype):
            count = positions.shape[0] * self.blocks
            whole = unpack_rows(codes[:, at : at + packed_row_bytes(count, width)], width, count)
            level = meant(whole, width, self.dither, values.dtype).view(codes.shape[0], -1, self.blocks)
            values.index_copy_(1, positions, level.mul_(deviations[:, None]))
        return values.mul_(gains[:, None, None])
