"""Rectifiers and dropout that hold one bit an element, and rectifiers that hold their result."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from memfit.bits import bend, pack, rectify, scale_by_bits
from memfit.operators.held import HeldTensor
from memfit.process_memory import make_room

aten = torch.ops.aten


class _Rectified(torch.autograd.Function):
    """Clamps, or with a slope multiplies what is not positive by it; the gradient passes where low < x < high, and times `slope` elsewhere.

    That can be told from the result, which the next operation mostly holds too.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        low: float,
        high: float,
        slope: float,
        bits: bool,
        over_input: bool,
        over_gradient: bool,
        packed: Tensor | None,
    ) -> Tensor:
        ctx.settings = low, high, slope, bits or packed is not None, over_gradient
        make_room(x.nbytes)
        if over_input:
            ctx.mark_dirty(x)
        if bits and packed is None and ctx.needs_input_grad[0]:
            result, held = rectify(x, low, high, slope, over_input)
        else:
            result = bend(x, low, high, slope, over_input)
            held = result if packed is None else packed
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(held)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (held,) = ctx.saved_tensors
        low, high, slope, bits, over_gradient = ctx.settings
        make_room(grad.nbytes)
        if bits:
            grad_x = scale_by_bits(grad, held, 1.0, slope, over_gradient)
        else:
            grad_x = grad if over_gradient else torch.empty_like(grad)
            if slope:
                aten.leaky_relu_backward.grad_input(grad, held, slope, True, grad_input=grad_x)
            elif high == float("inf"):
                aten.threshold_backward.grad_input(grad, held, low, grad_input=grad_x)
            else:
                aten.hardtanh_backward.grad_input(grad, held, low, high, grad_input=grad_x)
        return grad_x, *(None for _ in ctx.needs_input_grad[1:])


class Rectifier(NamedTuple):
    """What a rectifier does: max(x, low) and min of that and `high`, or with a slope x where it is positive and slope · x elsewhere."""

    low: float
    high: float = float("inf")
    slope: float = 0.0


def rectified(
    x: Tensor,
    rectifier: Rectifier,
    bits: bool = False,
    over_input: bool = False,
    over_gradient: bool = False,
    held: HeldTensor | None = None,
) -> Tensor:
    """Apply a rectifier.

    Args:
        bits: it holds one bit an element, and else its result.
        over_input: its result is written over `x`.
        over_gradient: in backward, the gradient of `x` is written over that of the result, which nobody else may have.
        held: a bitmap of max(x, 0), from `Hold`: its bits are what a relu holds.
    """
    packed = None if held is None else held.tensors[0]
    return _Rectified.apply(x, *rectifier, bits, over_input, over_gradient, packed)  # type: ignore[no-any-return,no-untyped-call]


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
