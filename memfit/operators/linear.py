"""Linear layer on inputs of two or more axes, its input held whole, in a form, or not at all."""

from math import prod
from typing import Any

import torch
from torch import Tensor

from memfit.forms import Held
from memfit.operators import directions
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
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias_O: Tensor | None,
        transposed: bool,
        valueless: bool,
        form: Restorable | None,
        *held: Tensor,
    ) -> Tensor:
        input_grad, weight_grad = ctx.needs_input_grad[:2]
        kept: Held = () if not weight_grad else held if form is not None else (x,)
        ctx.transposed, ctx.form, ctx.shape = transposed, form, x.shape
        ctx.save_for_backward(weight if input_grad else None, *kept)
        weight_OF = weight.mT if transposed else weight
        if valueless:
            return x.new_empty(()).expand(*x.shape[:-1], weight_OF.shape[0])
        make_room(x.nbytes // x.shape[-1] * weight_OF.shape[0])
        return no_view(torch.nn.functional.linear(x, weight_OF, bias_O))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, *kept = ctx.saved_tensors
        make_room(2 * grad.element_size() * prod(ctx.shape))
        grad_x = grad @ (weight.mT if ctx.transposed else weight) if ctx.needs_input_grad[0] else None
        grad_bias = grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None
        grad_weight = _weight_gradient(ctx, grad, tuple(kept)) if ctx.needs_input_grad[1] else None
        return (grad_x, grad_weight, grad_bias, *(None for _ in ctx.needs_input_grad[3:]))


def _weight_gradient(ctx: Any, grad: Tensor, held: Held) -> Tensor | None:
    """From the input as it is held: whole, or in a form."""
    left, total = features_left(ctx.form, ctx.shape, grad.shape[-1]), None
    whole = [(slice(None), held[0])] if ctx.form is None else None
    for samples, x in whole or restored_ranges(ctx.form, held, ctx.shape, grad.element_size(), left):
        part = weight_gradient(x, grad[samples]) if ctx.transposed else weight_gradient(grad[samples], x)
        total = part if total is None else total.add_(part)
        del x, part
    if left is None or total is None:
        return total
    directions_FR = ctx.form.directions(held, ctx.shape, left)
    result: Tensor = directions_FR @ total if ctx.transposed else total @ directions_FR.mT
    return result


def features_left(form: Restorable | None, shape: tuple[int, ...], outputs: int) -> int | None:
    """The input's last mode, where a layer of so many outputs leaves it in the directions that a form holds it in; else None."""
    mode = len(shape) - 1
    return directions.features_left(form, shape, mode, prod(shape) * outputs, shape[mode] * outputs)


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """Gradient of the weight (O, F) from the output's gradient (..., O) and the input (..., F)."""
    return grad.flatten(0, -2).mT @ x.flatten(0, -2)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    held: HeldTensor | None = None,
    transposed: bool = False,
    valueless: bool = False,
) -> Tensor:
    """`x @ weight.T + bias` for `x` (B, ..., F) and `weight` (O, F); `held` as for `convolution`.

    Args:
        transposed: the weight is (F, O).
        valueless: nobody reads the result: it is one element of any value, in its shape, and the backward is the same.
    """
    return _Linear.apply(x, weight, bias, transposed, valueless, *unpacked(held))  # type: ignore[no-any-return,no-untyped-call]
