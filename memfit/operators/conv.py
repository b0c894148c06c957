"""Convolution over 1 to 3 spatial axes, transposed or not, its input held whole, in a form, or not at all.

The weight gradient is that of the exact convolution of the restored input; the input gradient never needs the input.
"""

from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from memfit import native
from memfit.depthwise import Depthwise, depthwise
from memfit.forms import Held, Projection
from memfit.operators import directions
from memfit.operators.held import HeldTensor, Restorable, no_view, restored_ranges, unpacked
from memfit.process_memory import make_room
from memfit.tucker import as_mode, multiply_mode

aten = torch.ops.aten

FEW = 20480  # elements of one sample, up to which torch's choice of a convolution's kernel (`use_mkldnn`) is one that makes columns

# Operations of a program, with their spatial axes.
TRANSPOSED_CONVOLUTIONS: dict[Any, int] = {
    aten.conv_transpose1d.default: 1,
    aten.conv_transpose2d.input: 2,
    aten.conv_transpose3d.input: 3,
}
CONVOLUTIONS: dict[Any, int] = {
    aten.conv1d.default: 1,
    aten.conv2d.default: 2,
    aten.conv3d.default: 3,
    **TRANSPOSED_CONVOLUTIONS,
}


class ConvArguments(NamedTuple):
    """
    Attributes:
        stride, padding, dilation: one number a spatial axis each.
        output_padding: the same, of a transposed convolution; None for one that is not.
    """

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int = 1
    output_padding: list[int] | None = None

    @property
    def transposed(self) -> bool:
        return self.output_padding is not None

    @property
    def as_torch_has_them(self) -> tuple[list[int], list[int], list[int], bool, list[int], int]:
        return self.stride, self.padding, self.dilation, self.transposed, self.output_padding or [0] * len(self.stride), self.groups

    def outputs(self, weight_shape: tuple[int, ...]) -> int:
        """Channels of the result."""
        return weight_shape[1] * self.groups if self.transposed else weight_shape[0]


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, arguments: ConvArguments, form: Restorable | None, *held: Tensor
    ) -> Tensor:
        ctx.arguments, ctx.form, ctx.shape, ctx.weight_shape = arguments, form, x.shape, weight.shape
        input_grad, weight_grad = ctx.needs_input_grad[:2]
        kept: Held = () if not weight_grad else held if form is not None else (x,)
        ctx.save_for_backward(weight if input_grad else None, *kept)
        return convolve(x, weight, bias, arguments)

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
            grad_x = input_gradient(grad, weight, ctx.shape, ctx.arguments)
        if bias_grad:
            grad_bias = grad.sum([axis for axis in range(grad.dim()) if axis != 1])
        if weight_grad:
            grad_weight = held_weight_gradient(grad, ctx.form, tuple(kept), ctx.shape, ctx.weight_shape, ctx.arguments)
        return (grad_x, grad_weight, grad_bias, None, None, *(None for _ in ctx.needs_input_grad[5:]))


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, arguments: ConvArguments) -> Tensor:
    """The convolution, without autograd."""
    make_room(2 * _result_bytes(x, weight, arguments))  # once more, if the kernel lays it out its own way
    in_c = _in_c(arguments, x.shape, weight.shape, x, weight, *(() if bias is None else (bias,)))
    if in_c is not None:
        return in_c.convolve(x, weight, bias)
    return no_view(torch.convolution(x, weight, bias, *arguments.as_torch_has_them))


def _result_bytes(x: Tensor, weight: Tensor, arguments: ConvArguments) -> int:
    stride, padding, dilation, transposed, output_padding, _ = arguments.as_torch_has_them
    axes = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, output_padding, strict=True)
    places: list[int]
    if transposed:
        places = [(n - 1) * s - 2 * p + d * (k - 1) + o + 1 for n, k, s, p, d, o in axes]
    else:
        places = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d, _ in axes]
    return x.element_size() * x.shape[0] * arguments.outputs(weight.shape) * prod(places)


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, arguments: ConvArguments, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    bias_sizes = [arguments.outputs(weight.shape)] if wanted[2] else None
    return aten.convolution_backward(grad, x, weight, bias_sizes, *arguments.as_torch_has_them, list(wanted))  # type: ignore[no-any-return]


def held_weight_gradient(
    grad: Tensor, form: Restorable | None, held: Held, shape: torch.Size, weight_shape: torch.Size, arguments: ConvArguments
) -> Tensor:
    """Gradient of the weight from the input of that shape, held in a form, or whole where that is None."""
    if form is None:
        return weight_gradient(grad, held[0], weight_shape, arguments)
    left, total = features_left(form, shape, weight_shape, grad.shape, arguments), None
    for samples, x in restored_ranges(form, held, shape, grad.element_size(), left):
        read = (
            (x.shape[1], *weight_shape[1:])
            if arguments.transposed
            else (weight_shape[0], x.shape[1] // arguments.groups, *weight_shape[2:])
        )
        part = weight_gradient(grad[samples], x, torch.Size(read), arguments)
        total = part if total is None else total.add_(part)
        del x, part
    if total is None:  # no samples
        return grad.new_zeros(weight_shape)
    if left is None:
        return total
    assert isinstance(form, Projection)
    axis = 0 if arguments.transposed else 1
    directions_CR = form.directions(held, shape, left)
    return multiply_mode(as_mode(total.contiguous(), axis, axis + 1), directions_CR).view(weight_shape)


def features_left(
    form: Restorable | None, shape: tuple[int, ...], weight_shape: tuple[int, ...], result_shape: tuple[int, ...], arguments: ConvArguments
) -> int | None:
    """The input's mode of channels, where a convolution leaves it in the directions that a form holds it in; else None, as with groups,
    each of which would read all directions.
    """
    if arguments.groups > 1:
        return None
    return directions.features_left(form, shape, 1, products(shape, weight_shape, result_shape, arguments), prod(weight_shape))


def products(shape: tuple[int, ...], weight_shape: tuple[int, ...], result_shape: tuple[int, ...], arguments: ConvArguments) -> int:
    """Multiplications of a convolution of an input of that shape, one way."""
    return prod(shape if arguments.transposed else result_shape) * prod(weight_shape) // weight_shape[0]


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
        left, right = (x, grad) if arguments.transposed else (grad, x)
        turned = weight_shape[0] < weight_shape[1]  # products whose result has more rows than columns are faster
        if turned:
            left, right = right, left
        total = grad.new_zeros(left.shape[1], right.shape[1])
        for sample, values in zip(left.flatten(2), right.flatten(2), strict=True):
            total.addmm_(sample, values.mT)
        return (total.mT.contiguous() if turned else total).view(weight_shape)
    shape_alone = grad.new_empty(1).expand(weight_shape)  # its values are not read
    result = _backward(grad, x, shape_alone, arguments, (False, True, False))[1]
    assert result is not None
    return result


def input_gradient(grad: Tensor, weight: Tensor, shape: torch.Size, arguments: ConvArguments) -> Tensor:
    """Gradient of the input of that shape: the convolution of `grad` that is transposed if the operation's is not, and is not if it is.
    (`convolution_backward` would ask for the input and copy even an empty stand-in.) For one sample of few elements torch makes columns
    for that, many times as large; there a stand-in takes less.
    """
    in_c = _in_c(arguments, shape, weight.shape, grad, weight)
    if in_c is not None:
        return in_c.input_gradient(grad, weight)
    stride, padding, dilation, transposed, _, groups = arguments.as_torch_has_them
    if _is_pointwise(weight.shape, arguments) and grad.is_contiguous():
        weight_OC = weight.flatten(1).mT if transposed else weight.flatten(1)
        return torch.matmul(weight_OC.mT, grad.flatten(2)).view(shape)
    axes = zip(shape[2:], grad.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    if transposed:
        result = torch.convolution(grad, weight, None, stride, padding, dilation, False, [0] * len(stride), groups)
        for axis, size in enumerate(shape[2:], start=2):  # more places where the output's padding is a stride or more
            result = result.narrow(axis, 0, size)
        return result.contiguous()
    if groups == 1 and grad.shape[0] == 1 and grad.numel() <= FEW:
        enough = grad.is_contiguous() and grad.numel() >= prod(shape)
        stand_in = grad.flatten()[: prod(shape)].view(shape) if enough else grad.new_empty(shape)
        grad_x = _backward(grad, stand_in, weight, arguments, (True, False, False))[0]
        assert grad_x is not None
        return grad_x
    unread = [size - ((out - 1) * s - 2 * p + d * (k - 1) + 1) for size, out, k, s, p, d in axes]
    return torch.convolution(grad, weight, None, stride, padding, dilation, True, unread, groups)


def _in_c(arguments: ConvArguments, shape: torch.Size, weight_shape: torch.Size, *tensors: Tensor) -> Depthwise | None:
    """The C way of a depthwise convolution, where it is there and made for such tensors."""
    if arguments.groups == 1 or arguments.transposed or not all(map(native.takes, tensors)):
        return None
    return depthwise(shape, weight_shape, arguments.stride, arguments.padding, arguments.dilation, arguments.groups)


def _is_pointwise(weight_shape: torch.Size, arguments: ConvArguments) -> bool:
    """Whether it is a matrix product at every place: products of samples are faster than what convolutions come down to."""
    stride, padding, _, _, output_padding, groups = arguments.as_torch_has_them
    return groups == 1 and all(size == 1 for size in (*weight_shape[2:], *stride)) and not any((*padding, *output_padding))


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, arguments: ConvArguments, held: HeldTensor | None = None) -> Tensor:
    """Convolve `x` (B, C, *spatial) with `weight` (O, C / groups, *kernel); transposed, with one (C, O / groups, *kernel).

    Args:
        held: the input in the form that the weight gradient is to use, from `Hold`; None: whole, or not at all while `weight`
            is frozen.
    """
    return _Convolution.apply(x, weight, bias, arguments, *unpacked(held))  # type: ignore[no-any-return,no-untyped-call]
