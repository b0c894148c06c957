"""Elements in few bits, each group of neighbours between its own least and largest; and elements in bfloat16."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from memfit.forms.form import Held
from memfit.packing import pack_rows, packed_row_bytes, unpack_rows
from memfit.tucker import Decompose, decompose_mode

GROUP = 256  # elements of a sample that share their least value and their step
PIECE_BYTES = 2 << 20


# B = samples, G = groups of a sample
@dataclass(frozen=True, slots=True)
class Quantised:
    """Groups of `GROUP` elements of a sample, each element a number of `bits` bits.

    Attributes:
        dither: round at random (seeded by `torch.manual_seed`), so that the restored value is right on average; by itself to the
            nearest, which is nearer.
    """

    technique: ClassVar[str]
    bits: ClassVar[int]
    dither: bool = False

    def compress(self, x: Tensor, decompose: Decompose = decompose_mode) -> Held:
        count = prod(x.shape[1:])
        work = work_type(x.dtype)
        least_BG, step_BG = (torch.empty(x.shape[0], groups_of(count), dtype=work, device=x.device) for _ in range(2))
        codes = torch.empty(x.shape[0], packed_row_bytes(count, self.bits), dtype=torch.uint8, device=x.device)
        for start, stop in _ranges(x):
            rows = x[start:stop].reshape(stop - start, count).to(work)
            quantise(rows, self.bits, self.dither, codes[start:stop], least_BG[start:stop], step_BG[start:stop])
        return codes, least_BG, step_BG, x.new_empty(0)  # which tells the type to restore

    def restore(self, held: Held, shape: torch.Size, start: int, stop: int) -> Tensor:
        codes, least_BG, step_BG, like = held
        rows = dequantised(codes[start:stop], self.bits, prod(shape[1:]), least_BG[start:stop], step_BG[start:stop])
        return rows.to(like.dtype).reshape(stop - start, *shape[1:])

    def held_bytes(self, shape: tuple[int, ...], itemsize: int) -> int:
        count = prod(shape[1:])
        return shape[0] * (packed_row_bytes(count, self.bits) + 2 * max(4, itemsize) * -(-count // GROUP))

    def compress_bytes(self, shape: tuple[int, ...], itemsize: int) -> int:
        row = max(4, itemsize) * (prod(shape[1:]) + GROUP)
        return self.held_bytes(shape, itemsize) + 4 * min(shape[0] * row, max(PIECE_BYTES, row) + row)

    def restore_bytes(self, shape: tuple[int, ...], itemsize: int, samples: int) -> int:
        return 3 * max(4, itemsize) * samples * (prod(shape[1:]) + GROUP)


@dataclass(frozen=True, slots=True)
class Int8(Quantised):
    """A byte an element."""

    technique: ClassVar[str] = "int8"
    bits: ClassVar[int] = 8


@dataclass(frozen=True, slots=True)
class Int4(Quantised):
    """Two elements a byte."""

    technique: ClassVar[str] = "int4"
    bits: ClassVar[int] = 4


@dataclass(frozen=True, slots=True)
class Bfloat16:
    """Elements rounded to 8 significant bits, of any size that float32 has. For values wider than two bytes."""

    technique: ClassVar[str] = "bfloat16"

    def compress(self, x: Tensor, decompose: Decompose = decompose_mode) -> Held:
        # The second is empty and tells the type to restore.
        return x.to(torch.bfloat16, copy=True).contiguous(), x.new_empty(0)

    def restore(self, held: Held, shape: torch.Size, start: int, stop: int) -> Tensor:
        return held[0][start:stop].to(held[1].dtype, copy=True)

    def held_bytes(self, shape: tuple[int, ...], itemsize: int) -> int:
        return 2 * prod(shape)

    def compress_bytes(self, shape: tuple[int, ...], itemsize: int) -> int:
        return 4 * prod(shape)

    def restore_bytes(self, shape: tuple[int, ...], itemsize: int, samples: int) -> int:
        return itemsize * samples * prod(shape[1:])


def work_type(dtype: torch.dtype) -> torch.dtype:
    """In which values are worked on, and which least values and steps have."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def groups_of(count: int) -> int:
    """Groups of so many elements."""
    return -(-count // GROUP)


def quantise(rows: Tensor, bits: int, dither: bool, codes: Tensor, least: Tensor, step: Tensor) -> None:
    """Code rows of elements, each group of a row between its least and its largest.

    Args:
        rows: of a `work_type`. Shape (rows, count).
        codes, least, step: where the codes go, (rows, packed_row_bytes(count, bits)), and what a code of 0 and a step of codes mean,
            (rows, groups_of(count)).
    """
    count, levels = rows.shape[1], 2**bits - 1
    if count % GROUP:  # the last group is filled with its own first element
        rows = torch.cat([rows, rows[:, count - count % GROUP][:, None].expand(-1, -count % GROUP)], 1)
    values = rows.view(rows.shape[0], -1, GROUP)
    torch.amin(values, 2, out=least)
    most = values.amax(2)
    # A step is rounded up, or the largest element would be out of reach.
    finest = torch.finfo(rows.dtype)
    step.copy_((most / levels - least / levels).mul_(1 + 2 * finest.eps).clamp_min_(finest.tiny))
    scaled = (values - least[:, :, None]).div_(step[:, :, None])
    scaled.add_(torch.rand_like(scaled) if dither else 0.5).nan_to_num_(0.0).clamp_(0, levels + 0.5)
    pack_rows(scaled.to(torch.uint8).flatten(1)[:, :count], bits, codes)


def dequantised(codes: Tensor, bits: int, count: int, least: Tensor, step: Tensor) -> Tensor:
    """The rows that `quantise` coded, nearly. Shape (rows, count)."""
    values = torch.zeros(codes.shape[0], least.shape[1] * GROUP, dtype=least.dtype, device=codes.device)
    values[:, :count] = unpack_rows(codes, bits, count)
    values.view(codes.shape[0], -1, GROUP).mul_(step[:, :, None]).add_(least[:, :, None])
    return values[:, :count]


def _ranges(x: Tensor) -> Iterator[tuple[int, int]]:
    step = max(1, PIECE_BYTES // max(1, x.element_size() * prod(x.shape[1:])))
    for start in range(0, x.shape[0], step):
        yield start, min(start + step, x.shape[0])
