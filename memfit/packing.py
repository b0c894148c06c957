"""Whole numbers of few bits, packed to bytes.

A number of b bits is cut into planes of 8, 4, 2 and 1 bits (6 = 4 + 2). Within a plane, numbers that lie far apart share a byte,
not neighbours: so packing and unpacking are a few operations on long contiguous rows.
"""

from collections.abc import Iterator

import torch
from torch import Tensor


def packed_row_bytes(count: int, bits: int) -> int:
    """Bytes that a row of `count` numbers of `bits` bits takes: each plane filled up to whole bytes."""
    return sum(-(-count * width // 8) for width, _ in _planes(bits))


def pack_rows(values: Tensor, bits: int, out: Tensor) -> None:
    """Pack each row of numbers 0..2**bits - 1.

    Args:
        values: uint8, or int32 where `bits` is above 8. Shape (rows, count).
        out: uint8, shape (rows, packed_row_bytes(count, bits)).
    """
    at, count = 0, values.shape[1]
    for width, shift in _planes(bits):
        plane = (values >> shift).to(torch.uint8) if values.dtype != torch.uint8 else values >> shift if shift else values
        share = 8 // width
        length = -(-count // share)
        into = out[:, at : at + length]
        for number in range(share):
            part = plane[:, number * length : (number + 1) * length]
            if width < 8:
                part = part & (1 << width) - 1
            if number == 0:
                into.copy_(part)
            else:
                into[:, : part.shape[1]] |= part << width * number
        at += length


def unpack_rows(packed: Tensor, bits: int, count: int) -> Tensor:
    """What `pack_rows` packed: uint8, or int32 where `bits` is above 8. Shape (rows, count)."""
    rows = packed.shape[0]
    values = torch.empty(rows, count, dtype=torch.uint8 if bits <= 8 else torch.int32, device=packed.device)
    at = 0
    for width, shift in _planes(bits):
        share = 8 // width
        length = -(-count // share)
        plane = packed[:, at : at + length]
        for number in range(share):
            into = values[:, number * length : (number + 1) * length]
            part = plane[:, : into.shape[1]] >> width * number
            if width < 8 and number < share - 1:
                part &= (1 << width) - 1
            if shift:
                into |= part.to(values.dtype) << shift
            else:
                into.copy_(part)
        at += length
    return values


def _planes(bits: int) -> Iterator[tuple[int, int]]:
    """Widths of the planes of a number, and the place of their lowest bit; from the lowest."""
    shift = 0
    while bits - shift >= 8:
        yield 8, shift
        shift += 8
    for width in (4, 2, 1):
        if (bits - shift) & width and bits - shift < 2 * width:
            yield width, shift
            shift += width
