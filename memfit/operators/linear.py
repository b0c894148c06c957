"""Linear layer on inputs of two or more axes, its input held whole, in a form, or not at all."""

from math import prod
from typing import Any

import torch
from torch import Tensor

from memfit.forms import Held
from memfit.operators.held import HeldTensor, Restorable, no_view, restored_ranges, unpacked
from memfit.process_memory import make_room

# A linear layer whose weight is kept by columns, (F, O), as an operation of a program.
LIBRARY = torch.library.Library("memfit", "DEF")
LIBRARY.define("transposed_linear(Tensor input, Tensor weight, Tensor? bias=None) -> Tensor")
LIBRARY.impl(
    "transposed_linear", lambda x, weight_FO, bias_O=None: torch.nn.functional.linear(x, weight_FO.mT, bias_O), "CompositeImplicitAutograd"
)
TRANSPOSED_LINEAR = torch.ops.memfit.transposed_linear.default


# B = samples, F = features in, O = features out; further axes between B and F count as samples of the product.
class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias_O: Tensor | None, transposed: bool, form: Restorable | None, *held: Tensor
    ) -> Tensor:
        input_grad, weight_grad = ctx.needs_input_grad[:2]
        kept: Held = () if not weight_grad else held if form is not None else (x,)
        ctx.transposed, ctx.form, ctx.shape = transposed, form, x.shape
        ctx.save_for_backward(weight if input_grad else None, *kept)
        weight_OF = weight.mT if transposed else weight
        make_room(x.nbytes // x.shape[-1] * weight_OF.shape[0])
        return no_view(torch.nn.functional.linear(x, weight_OF, bias_O))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, *kept = ctx.saved_tensors
        make_room(2 * grad.element_size() * prod(ctx.shape))
        grad_x = grad @ (weight.mT if ctx.transposed else weight) if ctx.needs_input_grad[0] else None
        grad_bias = grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None
        grad_weight = None
        if ctx.needs_input_grad[1]:
            whole = [(slice(None), kept[0])] if ctx.form is None else None
            for samples, x in whole or restored_ranges(ctx.form, tuple(kept), ctx.shape, grad.element_size()):
                part = weight_gradient(x, grad[samples]) if ctx.transposed else weight_gradient(grad[samples], x)
                grad_weight = part if grad_weight is None else grad_weight.add_(part)
        return (grad_x, grad_weight, grad_bias, None, None, *(None for _ in ctx.needs_input_grad[5:]))


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """Gradient of the weight (O, F) from the output's gradient (..., O) and the input (..., F)."""
    return grad.flatten(0, -2).mT @ x.flatten(0, -2)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, held: HeldTensor | None = None, transposed: bool = False) -> Tensor:
    """`x @ weight.T + bias` for `x` (B, ..., F) and `weight` (O, F); `held` as for `convolution`.

    Args:
        transposed: the weight is (F, O).
    """
    return _Linear.apply(x, weight, bias, transposed, *unpacked(held))  # type: ignore[no-any-return,no-untyped-call]
