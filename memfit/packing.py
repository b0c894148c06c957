"""Whole numbers of few bits, packed to bytes.

A number of b bits is cut into planes of 8, 4, 2 and 1 bits (6 = 4 + 2). Within a plane, neighbours share a byte; packing works on words of
16, 32 or 64 bits, each of which becomes one byte.
"""

from functools import cache

import torch
from torch import Tensor

WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # of so many bytes


def packed_row_bytes(count: int, bits: int) -> int:
    """Bytes that a row of `count` numbers of `bits` bits takes: each plane filled up to whole bytes."""
    if count % 8 == 0:
        return count // 8 * bits
    return sum(-(-count * width // 8) for width, _ in _planes(bits))


def pack_rows(values: Tensor, bits: int, out: Tensor) -> None:
    """Pack each row of numbers 0..2**bits - 1.

    Args:
        values: uint8, or int32 where `bits` is above 8. Shape (rows, count).
        out: uint8, shape (rows, packed_row_bytes(count, bits)).
    """
    at, count = 0, values.shape[1]
    for width, shift in _planes(bits):
        share = 8 // width
        length = -(-count // share)
        plane = values >> shift if shift else values
        if plane.dtype != torch.uint8:
            plane = plane.to(torch.uint8)
        if width == 8 or not count:
            out[:, at : at + length] = plane
        else:
            whole = torch.zeros(values.shape[0], length * share, dtype=torch.uint8, device=values.device)
            torch.bitwise_and(plane, (1 << width) - 1, out=whole[:, :count])
            out[:, at : at + length] = _together(whole, width)
        at += length


def unpack_rows(packed: Tensor, bits: int, count: int) -> Tensor:
    """What `pack_rows` packed: uint8, or int32 where `bits` is above 8. Shape (rows, count)."""
    values, at = None, 0
    for width, shift in _planes(bits):
        share = 8 // width
        length = -(-count // share)
        plane = packed[:, at : at + length]
        if width < 8 and count:
            plane = _apart(plane, width)[:, :count]
        if bits > 8:
            plane = plane.to(torch.int32)
        if values is None:
            values = plane.clone() if bits == 8 else plane  # else a tensor of its own already
        else:
            values.bitwise_or_(plane.bitwise_left_shift_(shift))
        at += length
    assert values is not None
    return values


def _together(whole: Tensor, width: int) -> Tensor:
    """Neighbouring numbers in one byte: a multiplication brings all of a word into its last byte."""
    share = 8 // width
    word = WORDS[share]
    gather = sum(1 << 8 * (share - 1 - number) + width * number for number in range(share))
    return ((whole.view(word) * gather) >> 8 * (share - 1)).to(torch.uint8)


def _apart(packed: Tensor, width: int) -> Tensor:
    """The numbers of each byte, one a byte: a multiplication copies the byte to all of a word, and each copy is shifted and masked."""
    share = 8 // width
    word = WORDS[share]
    bytes_ = packed.to(word)
    spread = bytes_
    for number in range(1, share):
        spread = spread | bytes_ << (8 - width) * number
    mask = sum(((1 << width) - 1) << 8 * number for number in range(share))
    return (spread & mask).view(torch.uint8).view(packed.shape[0], -1)


@cache
def _planes(bits: int) -> tuple[tuple[int, int], ...]:
    """Widths of the planes of a number, and the place of their lowest bit; from the lowest."""
    planes, shift = [], 0
    while bits - shift >= 8:
        planes.append((8, shift))
        shift += 8
    for width in (4, 2, 1):
        if (bits - shift) & width and bits - shift < 2 * width:
            planes.append((width, shift))
            shift += width
    return tuple(planes)
