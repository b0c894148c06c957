"""Rectifiers and dropout that hold one bit an element."""

from typing import Any

import torch
from torch import Tensor

from memfit.bits import bend, pack, rectify, scale_by_bits


class _Masked(torch.autograd.Function):
    """`apply_in_place` clamps; the gradient passes where low < x < high, and times `slope` elsewhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float, slope: float, in_place: bool) -> Tensor:
        ctx.slope = slope
        if in_place:
            ctx.mark_dirty(x)
        if not ctx.needs_input_grad[0]:
            return bend(x, low, high, slope, in_place)
        result, packed = rectify(x, low, high, slope, in_place)
        ctx.save_for_backward(packed)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (packed,) = ctx.saved_tensors
        return scale_by_bits(grad, packed, 1.0, ctx.slope), None, None, None, None


def masked_relu(x: Tensor, in_place: bool = False) -> Tensor:
    """max(x, 0), holding one bit an element."""
    return _Masked.apply(x, 0.0, float("inf"), 0.0, in_place)  # type: ignore[no-any-return,no-untyped-call]


def masked_hardtanh(x: Tensor, low: float, high: float, in_place: bool = False) -> Tensor:
    """min(max(x, low), high), holding one bit an element. relu6 is 0 to 6."""
    return _Masked.apply(x, low, high, 0.0, in_place)  # type: ignore[no-any-return,no-untyped-call]


def masked_leaky_relu(x: Tensor, slope: float, in_place: bool = False) -> Tensor:
    """x where it is positive, slope · x elsewhere, holding one bit an element."""
    return _Masked.apply(x, 0.0, float("inf"), slope, in_place)  # type: ignore[no-any-return,no-untyped-call]


class _MaskedDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, probability: float) -> Tensor:
        kept = torch.empty_like(x, dtype=torch.bool, memory_format=torch.contiguous_format).bernoulli_(1 - probability)
        ctx.scale = 0.0 if probability == 1 else 1 / (1 - probability)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(pack(kept))
        return (x * kept).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (packed,) = ctx.saved_tensors
        return scale_by_bits(grad, packed, ctx.scale, 0.0), None


class MaskedDropout(torch.nn.Module):
    """Dropout that holds one bit an element; the identity in evaluation. Draws the numbers that `torch.nn.Dropout` draws."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0:
            return x
        return _MaskedDropout.apply(x, self.probability)  # type: ignore[no-any-return,no-untyped-call]
