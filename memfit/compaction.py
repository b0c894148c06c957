"""Elements above zero, one after the other, and the bits that say where they were; in C, in one pass each.

Element i is bit i % 8 of byte i // 8, as in `memfit.bits`. The torch operations work through their tensors in pieces, whose workspace is
small whatever the size of a sample.
"""

import torch
from torch import Tensor

from memfit import native
from memfit.bits import pack, packed_bytes, unpack

PIECE = 1 << 14  # elements worked on at once; a multiple of 8


def workspace_bytes(elements: int, itemsize: int) -> int:
    """Most bytes live at once beyond what the functions here take and give: none in C; torch counts places in 64 bits."""
    return 0 if native.library() is not None and itemsize == 4 else 40 * min(elements, PIECE)


def pack_above_zero(x: Tensor) -> Tensor:
    """Bits of what is above zero or no number, which is not to be taken for a zero. Shape (packed_bytes(x.numel()),), uint8."""
    flat = x.detach().contiguous().view(-1)
    packed = torch.empty(packed_bytes(flat.numel()), dtype=torch.uint8, device=x.device)
    if native.takes(flat):
        native.above_zero(flat, packed)
        return packed
    for start, stop in _pieces(0, flat.numel()):
        packed[start // 8 : packed_bytes(stop)] = pack(flat[start:stop].le(0).logical_not_())
    return packed


def count_set(packed: Tensor, rows: int, elements: int) -> Tensor:
    """Bits set in each of the rows of so many elements that follow one another. Shape (rows,), int64."""
    if native.library() is not None and packed.device.type == "cpu":
        return native.count_set(packed, rows, elements)
    counts = torch.zeros(rows, dtype=torch.int64, device=packed.device)
    for row in range(rows):
        for start, stop in _pieces(row * elements, (row + 1) * elements):
            counts[row] += _bits(packed, start, stop).sum()
    return counts


def compact(x: Tensor, packed: Tensor, first: int, counts: list[int], values: Tensor) -> None:
    """The elements whose bit is set, one after the other.

    Args:
        x: shape (rows, elements), contiguous; `first` is the place of its first element's bit.
        counts: how many are set in each row.
        values: where they go. Shape (sum of `counts`,), contiguous, of the type of `x`.
    """
    if native.takes(x):
        native.compact(x, packed, first, counts, values)
        return
    flat, at = x.view(-1), 0
    for start, stop in _pieces(0, flat.numel()):
        found = flat[start:stop][_bits(packed, first + start, first + stop)]
        values[at : at + found.numel()] = found
        at += found.numel()


def expand(values: Tensor, packed: Tensor, first: int, counts: list[int], x: Tensor) -> None:
    """What `compact` was given, with zeros where no bit is set.

    Args:
        values: shape (sum of `counts`,), contiguous. They may be the last elements of `x`, which are read before they are written.
        x: where it goes. Shape (rows, elements), contiguous.
    """
    if native.takes(x):
        native.expand(values, packed, first, counts, x)
        return
    flat, at = x.view(-1), 0
    for start, stop in _pieces(0, flat.numel()):
        where = _bits(packed, first + start, first + stop)
        count = int(where.sum())
        found = values[at : at + count].clone()
        flat[start:stop].zero_().masked_scatter_(where, found)
        at += count


def _pieces(start: int, stop: int) -> list[tuple[int, int]]:
    return [(at, min(at + PIECE, stop)) for at in range(start, stop, PIECE)]


def _bits(packed: Tensor, start: int, stop: int) -> Tensor:
    return unpack(packed[start // 8 : packed_bytes(stop)], start % 8 + stop - start)[start % 8 :]
