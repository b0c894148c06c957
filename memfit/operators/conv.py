"""Convolution over 1 to 3 spatial axes, its input held whole, in a form, or not at all.

The weight gradient is that of the exact convolution of the restored input; the input gradient never needs the input.
"""

from typing import Any

import torch
from torch import Tensor

from memfit.forms import Form, Held
from memfit.operators.held import HeldTensor, restored_ranges, unpacked

ConvArguments = tuple[list[int], list[int], list[int], int]  # stride, padding, dilation, groups


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, arguments: ConvArguments, form: Form | None, *held: Tensor) -> Tensor:
        stride, padding, dilation, groups = arguments
        ctx.arguments, ctx.form, ctx.shape, ctx.weight_shape = arguments, form, x.shape, weight.shape
        input_grad, weight_grad = ctx.needs_input_grad[:2]
        kept: Held = () if not weight_grad else held if form is not None else (x,)
        ctx.save_for_backward(weight if input_grad else None, *kept)
        return torch.convolution(x, weight, bias, stride, padding, dilation, False, [0] * len(stride), groups)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        weight, *kept = ctx.saved_tensors
        input_grad, weight_grad, bias_grad = ctx.needs_input_grad[:3]
        whole = weight_grad and ctx.form is None
        # Stand-ins without bytes give the shapes where no values are read.
        x = kept[0] if whole else grad.new_empty(1).expand(ctx.shape)
        weight = weight if weight is not None else grad.new_empty(1).expand(ctx.weight_shape)
        # The backend works out weight and bias gradients together, so a bias alone is summed here.
        grad_x, grad_weight, grad_bias = _backward(ctx, grad, x, weight, (input_grad, whole, whole and bias_grad))
        if bias_grad and not whole:
            grad_bias = grad.sum([axis for axis in range(grad.dim()) if axis != 1])
        if weight_grad and not whole:
            for samples, restored in restored_ranges(ctx.form, tuple(kept), ctx.shape, grad.element_size()):
                _, part, _ = _backward(ctx, grad[samples], restored, weight, (False, True, False))
                grad_weight = part if grad_weight is None else grad_weight.add_(part)
        return (grad_x, grad_weight, grad_bias, None, None, *(None for _ in ctx.needs_input_grad[5:]))


def _backward(ctx: Any, grad: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool]) -> tuple[Tensor | None, ...]:
    if not any(wanted):
        return None, None, None
    stride, padding, dilation, groups = ctx.arguments
    bias_sizes = [weight.shape[0]] if wanted[2] else None
    result: tuple[Tensor | None, ...] = torch.ops.aten.convolution_backward(
        grad, x, weight, bias_sizes, stride, padding, dilation, False, [0] * len(stride), groups, list(wanted)
    )
    return result


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, arguments: ConvArguments, held: HeldTensor | None = None) -> Tensor:
    """Convolve `x` (B, C, *spatial) with `weight` (O, C / groups, *kernel).

    Args:
        arguments: stride, padding, dilation (one number a spatial axis each) and groups.
        held: the input in the form that the weight gradient is to use, from `Hold`; None: whole, or not at all while `weight`
            is frozen.
    """
    return _Convolution.apply(x, weight, bias, arguments, *unpacked(held))  # type: ignore[no-any-return,no-untyped-call]
