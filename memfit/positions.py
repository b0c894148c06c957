"""Positions of coefficients by the bits they get, and their places in a packed sample."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from memfit.allotment import CODES, allot, deviations_of_codes
from memfit.packing import pack_rows, packed_row_bytes, unpack_rows
from memfit.quantisers import bent, levels, quantisers

if TYPE_CHECKING:
    from memfit.native import NativeCoder


class Positions:
    """What the bits and the steps of every position are.

    Attributes:
        blocks: coefficients of each position in a sample.
        dither: they are rounded at random.
        widths: bits of each position; deviations: relative to the gain. Shape (P,).
        groups: for each width that occurs: its positions, their deviations, and the first of its bytes in a packed sample.
        row_bytes: of a packed sample.
        coders: `memfit.native.NativeCoder` of each grid, where there are some.
    """

    def __init__(self, deviations: Tensor, largest: float, blocks: int, sample_bytes: int, dither: bool) -> None:
        counts = tuple(torch.bincount(deviations, minlength=CODES).tolist())
        by_code = allot(counts, blocks, sample_bytes, dither)
        codes, device = deviations.int(), deviations.device
        self.blocks, self.dither, self.count, self.row_bytes = blocks, dither, deviations.numel(), 0
        self.coders: dict[tuple[int, ...], NativeCoder] = {}
        self.widths = torch.tensor(by_code, dtype=torch.uint8, device=device)[codes]
        self.deviations = deviations_of_codes(largest, torch.empty(0, dtype=torch.float64, device=device))[codes]
        self.groups: list[tuple[int, Tensor, Tensor, int]] = []
        for width in sorted({width for width, count in zip(by_code, counts, strict=True) if width and count}):
            positions = (self.widths == width).nonzero()[:, 0]
            self.groups.append((width, positions, self.deviations[positions], self.row_bytes))
            self.row_bytes += packed_row_bytes(blocks * positions.shape[0], width)

    @property
    def largest_group(self) -> float:
        """The share of the positions that the most frequent width has."""
        return max((positions.shape[0] for _, positions, _, _ in self.groups), default=0) / max(1, self.count)

    def pack(self, values: Tensor, out: Tensor) -> None:
        """Quantise coefficients (samples, P, M), relative to their gains, into rows of bytes."""
        for width, positions, deviations, at in self.groups:
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
        for width, positions, deviations, at in self.groups:
            count = positions.shape[0] * self.blocks
            whole = unpack_rows(codes[:, at : at + packed_row_bytes(count, width)], width, count).int()
            level = levels(width, self.dither).to(values).index_select(0, whole.flatten()).view(codes.shape[0], -1, self.blocks)
            values.index_copy_(1, positions, level.mul_(deviations.to(values.dtype)[:, None]))
        return values.mul_(gains[:, None, None])
