"""Linear layer on inputs of two or more axes, its input held whole, in a form, or not at all."""

from math import prod
from typing import Any

import torch
from torch import Tensor

from memfit.forms import Held
from memfit.operators.held import HeldTensor, Restorable, no_view, restored_ranges, unpacked
from memfit.process_memory import make_room


# B = samples, F = features in, O = features out; further axes between B and F count as samples of the product.
class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OF: Tensor, bias_O: Tensor | None, form: Restorable | None, *held: Tensor) -> Tensor:
        input_grad, weight_grad = ctx.needs_input_grad[:2]
        kept: Held = () if not weight_grad else held if form is not None else (x,)
        ctx.form, ctx.shape = form, x.shape
        ctx.save_for_backward(weight_OF if input_grad else None, *kept)
        make_room(x.nbytes // x.shape[-1] * weight_OF.shape[0])
        return no_view(torch.nn.functional.linear(x, weight_OF, bias_O))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight_OF, *kept = ctx.saved_tensors
        make_room(2 * grad.element_size() * prod(ctx.shape))
        grad_x = grad @ weight_OF if ctx.needs_input_grad[0] else None
        grad_bias = grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None
        grad_weight = None
        if ctx.needs_input_grad[1] and ctx.form is None:
            grad_weight = weight_gradient(grad, kept[0])
        elif ctx.needs_input_grad[1]:
            for samples, restored in restored_ranges(ctx.form, tuple(kept), ctx.shape, grad.element_size()):
                part = weight_gradient(grad[samples], restored)
                grad_weight = part if grad_weight is None else grad_weight.add_(part)
        return (grad_x, grad_weight, grad_bias, None, *(None for _ in ctx.needs_input_grad[4:]))


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """Gradient of the weight (O, F) from the output's gradient (..., O) and the input (..., F)."""
    return grad.flatten(0, -2).mT @ x.flatten(0, -2)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, held: HeldTensor | None = None) -> Tensor:
    """`x @ weight.T + bias` for `x` (B, ..., F) and `weight` (O, F); `held` as for `convolution`."""
    return _Linear.apply(x, weight, bias, *unpacked(held))  # type: ignore[no-any-return,no-untyped-call]
