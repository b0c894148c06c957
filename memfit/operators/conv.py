"""Convolution over 1 to 3 spatial axes, its input held whole, in a form, or not at all.

The weight gradient is that of the exact convolution of the restored input; the input gradient never needs the input.
"""

from math import prod
from typing import Any

import torch
from torch import Tensor

from memfit import native
from memfit.depthwise import Depthwise, depthwise
from memfit.forms import Held
from memfit.operators.held import HeldTensor, Restorable, no_view, restored_ranges, unpacked
from memfit.process_memory import make_room

ConvArguments = tuple[list[int], list[int], list[int], int]  # stride, padding, dilation, groups


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, arguments: ConvArguments, form: Restorable | None, *held: Tensor
    ) -> Tensor:
        stride, padding, dilation, groups = arguments
        ctx.arguments, ctx.form, ctx.shape, ctx.weight_shape = arguments, form, x.shape, weight.shape
        input_grad, weight_grad = ctx.needs_input_grad[:2]
        kept: Held = () if not weight_grad else held if form is not None else (x,)
        ctx.save_for_backward(weight if input_grad else None, *kept)
        make_room(2 * _result_bytes(x, weight, arguments))  # once more, if the kernel lays it out its own way
        in_c = _in_c(arguments, x.shape, weight.shape, x, weight, *(() if bias is None else (bias,)))
        if in_c is not None:
            return in_c.convolve(x, weight, bias)
        return no_view(torch.convolution(x, weight, bias, stride, padding, dilation, False, [0] * len(stride), groups))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, *kept = ctx.saved_tensors
        input_grad, weight_grad, bias_grad = ctx.needs_input_grad[:3]
        grad_x = grad_weight = grad_bias = None
        make_room(2 * grad.element_size() * prod(ctx.shape) + grad.nbytes)
        if weight_grad and ctx.form is None and not _by_itself(grad, kept[0], ctx.weight_shape, ctx.arguments):
            if weight is None:
                weight = grad.new_empty(1).expand(ctx.weight_shape)  # its values are not read
            grad_x, grad_weight, grad_bias = _backward(grad, kept[0], weight, ctx.arguments, (input_grad, True, bias_grad))
            return (grad_x, grad_weight, grad_bias, None, None)
        if input_grad:
            grad_x = _input_gradient(ctx, grad, weight)
        if bias_grad:
            grad_bias = grad.sum([axis for axis in range(grad.dim()) if axis != 1])
        if weight_grad:
            whole = [(slice(None), kept[0])] if ctx.form is None else None
            for samples, x in whole or restored_ranges(ctx.form, tuple(kept), ctx.shape, grad.element_size()):
                part = weight_gradient(grad[samples], x, ctx.weight_shape, ctx.arguments)
                grad_weight = part if grad_weight is None else grad_weight.add_(part)
        return (grad_x, grad_weight, grad_bias, None, None, *(None for _ in ctx.needs_input_grad[5:]))


def _result_bytes(x: Tensor, weight: Tensor, arguments: ConvArguments) -> int:
    stride, padding, dilation, _ = arguments
    axes = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    return x.element_size() * x.shape[0] * weight.shape[0] * prod((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes)


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, arguments: ConvArguments, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    stride, padding, dilation, groups = arguments
    bias_sizes = [weight.shape[0]] if wanted[2] else None
    return torch.ops.aten.convolution_backward(  # type: ignore[no-any-return]
        grad, x, weight, bias_sizes, stride, padding, dilation, False, [0] * len(stride), groups, list(wanted)
    )


def _by_itself(grad: Tensor, x: Tensor, weight_shape: torch.Size, arguments: ConvArguments) -> bool:
    """Whether the gradients of weight and input are fast one by one; else torch works them out together."""
    if _in_c(arguments, x.shape, weight_shape, grad, x) is not None:
        return True
    return _is_pointwise(weight_shape, arguments) and grad.device.type == "cpu" and grad.is_contiguous() and x.is_contiguous()


def weight_gradient(grad: Tensor, x: Tensor, weight_shape: torch.Size, arguments: ConvArguments) -> Tensor:
    """Gradient of the weight from the output's gradient and the input."""
    in_c = _in_c(arguments, x.shape, weight_shape, grad, x)
    if in_c is not None:
        return in_c.weight_gradient(grad, x)
    if _is_pointwise(weight_shape, arguments) and grad.is_contiguous() and x.is_contiguous():
        left, right = (grad, x) if weight_shape[0] >= weight_shape[1] else (x, grad)  # products with the longer side first are faster
        total = grad.new_zeros(left.shape[1], right.shape[1])
        for rows, columns in zip(left.flatten(2), right.flatten(2), strict=True):
            total.addmm_(rows, columns.mT)
        return (total if left is grad else total.mT.contiguous()).view(weight_shape)
    shape_alone = grad.new_empty(1).expand(weight_shape)  # its values are not read
    result = _backward(grad, x, shape_alone, arguments, (False, True, False))[1]
    assert result is not None
    return result


def _input_gradient(ctx: Any, grad: Tensor, weight: Tensor) -> Tensor:
    """The transposed convolution of `grad`. (`convolution_backward` would ask for the input and copy even an empty stand-in.)"""
    in_c = _in_c(ctx.arguments, ctx.shape, weight.shape, grad, weight)
    if in_c is not None:
        return in_c.input_gradient(grad, weight)
    if _is_pointwise(weight.shape, ctx.arguments) and grad.is_contiguous():
        return torch.matmul(weight.flatten(1).mT, grad.flatten(2)).view(ctx.shape)
    stride, padding, dilation, groups = ctx.arguments
    axes = zip(ctx.shape[2:], grad.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    unread = [size - ((out - 1) * s - 2 * p + d * (k - 1) + 1) for size, out, k, s, p, d in axes]
    return torch.convolution(grad, weight, None, stride, padding, dilation, True, unread, groups)


def _in_c(arguments: ConvArguments, shape: torch.Size, weight_shape: torch.Size, *tensors: Tensor) -> Depthwise | None:
    """The C way of a depthwise convolution, where it is there and made for such tensors."""
    if arguments[3] == 1 or not all(map(native.takes, tensors)):
        return None
    return depthwise(shape, weight_shape, *arguments)


def _is_pointwise(weight_shape: torch.Size, arguments: ConvArguments) -> bool:
    """Whether it is a matrix product at every place: products of samples are faster than what convolutions come down to."""
    stride, padding, _, groups = arguments
    return groups == 1 and all(size == 1 for size in (*weight_shape[2:], *stride)) and not any(padding)


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, arguments: ConvArguments, held: HeldTensor | None = None) -> Tensor:
    """Convolve `x` (B, C, *spatial) with `weight` (O, C / groups, *kernel).

    Args:
        arguments: stride, padding, dilation (one number a spatial axis each) and groups.
        held: the input in the form that the weight gradient is to use, from `Hold`; None: whole, or not at all while `weight`
            is frozen.
    """
    return _Convolution.apply(x, weight, bias, arguments, *unpacked(held))  # type: ignore[no-any-return,no-untyped-call]
