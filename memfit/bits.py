"""One bit an element: where a gradient passes.

All functions work through their tensors in pieces, so that no byte mask of the whole tensor ever exists; in C, in one pass.
"""

import torch
from torch import Tensor

from memfit import native

PIECE = 1 << 16  # elements worked on at once; a multiple of 8
_GATHER = 0x0102040810204080  # moves bit 0 of byte k of a 64-bit word to bit 56 + k


def packed_bytes(elements: int) -> int:
    """Bytes that `elements` bits take."""
    return -(-elements // 8)


def rectify(x: Tensor, low: float, high: float, slope: float, in_place: bool) -> tuple[Tensor, Tensor]:
    """`x` clamped to low..high, or, with a slope, x where it is positive and slope · x elsewhere; and the bits of low < x < high.

    Args:
        slope: not negative. If it is not 0, `low` is 0 and `high` infinite.
        in_place: the result is `x` itself.
    """
    if native.takes(x):
        result = x if in_place else torch.empty_like(x)
        packed = torch.empty(packed_bytes(x.numel()), dtype=torch.uint8)
        native.rectify(x, low, high, slope, result, packed)
        return result, packed
    packed = pack_between(x, low, high)
    return bend(x, low, high, slope, in_place), packed


def bend(x: Tensor, low: float, high: float, slope: float, in_place: bool) -> Tensor:
    """What `rectify` makes of `x`, without the bits."""
    if slope:
        return (torch.nn.functional.leaky_relu_ if in_place else torch.nn.functional.leaky_relu)(x, slope)
    return x.clamp_(low, high) if in_place else x.clamp(low, high)


def pack_between(x: Tensor, low: float, high: float) -> Tensor:
    """Bits of low < x < high, element by element in memory order of `x.contiguous()`.

    Args:
        x: any shape and floating dtype. Elements that are NaN give 0.

    Returns:
        uint8, shape (packed_bytes(x.numel()),). Element i is bit i % 8 of byte i // 8.
    """
    flat = x.detach().contiguous().view(-1)
    packed = torch.empty(packed_bytes(flat.numel()), dtype=torch.uint8, device=x.device)
    for start in range(0, flat.numel(), PIECE):
        piece = flat[start : start + PIECE]
        inside = piece > low
        if high != float("inf"):
            inside &= piece < high
        packed[start // 8 : packed_bytes(start + piece.numel())] = _pack(inside)
    return packed


def pack(bits: Tensor) -> Tensor:
    """Bits of a bool tensor, in the order of `pack_between`."""
    flat = bits.contiguous().view(-1)
    packed = torch.empty(packed_bytes(flat.numel()), dtype=torch.uint8, device=bits.device)
    for start in range(0, flat.numel(), PIECE):
        piece = flat[start : start + PIECE]
        packed[start // 8 : packed_bytes(start + piece.numel())] = _pack(piece)
    return packed


def unpack(packed: Tensor, elements: int) -> Tensor:
    """Of packed bits (..., bytes), the first so many of each row: bool, (..., elements)."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return (packed[..., None] >> shifts & 1).flatten(-2)[..., :elements].bool()


def scale_by_bits(grad: Tensor, packed: Tensor, where_set: float, where_clear: float, in_place: bool = False) -> Tensor:
    """`grad` times `where_set` where the bit is 1 and times `where_clear` where it is 0. Same shape, contiguous.

    Args:
        in_place: the result may be written over `grad`.
    """
    flat = grad.contiguous().view(-1)
    result = flat if in_place else torch.empty_like(flat)
    if native.takes(flat):
        native.scale_by_bits(flat, packed, where_set, where_clear, result)
        return result.view(grad.shape)
    bytes_and_bits = torch.arange(256, device=grad.device)[:, None] >> torch.arange(8, device=grad.device) & 1
    set_, clear = (torch.tensor(value, dtype=grad.dtype, device=grad.device) for value in (where_set, where_clear))
    factors = torch.where(bytes_and_bits.bool(), set_, clear)  # eight for every byte there is
    for start in range(0, flat.numel(), PIECE):
        piece = flat[start : start + PIECE]
        bytes_ = packed[start // 8 : packed_bytes(start + piece.numel())]
        factor = torch.nn.functional.embedding(bytes_.int(), factors).view(-1)[: piece.numel()]
        torch.mul(piece, factor, out=result[start : start + PIECE])
    return result.view(grad.shape)


def _pack(bits: Tensor) -> Tensor:
    if bits.numel() % 8:
        bits = torch.nn.functional.pad(bits, (0, -bits.numel() % 8))
    if bits.storage_offset() % 8:  # a view as 64-bit words needs its alignment
        bits = bits.clone()
    return (bits.view(torch.int64) * _GATHER).bitwise_right_shift_(56).to(torch.uint8)
