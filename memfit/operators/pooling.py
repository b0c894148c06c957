"""Pooling that holds no more than it needs: of max pooling one byte a window, of average pooling the shape alone.

Torch holds the input of both, and for max pooling an int64 index a window beside it. Only the place inside the window is news: which
window it is follows from where the output lies.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
RANGE_WINDOWS = 1 << 15  # windows whose indices are worked out at a time; one plane's if that is more


@dataclass(frozen=True, slots=True)
class Window:
    """Of a pooling in two dimensions: each a pair, rows first."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    ceil_mode: bool


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, window: Window, small: bool) -> Tensor:
        result, indices = aten.max_pool2d_with_indices(x, window.kernel, window.stride, window.padding, window.dilation, window.ceil_mode)
        ctx.window, ctx.shape, ctx.small = window, x.shape, small
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(places(indices, x.shape[-1], window) if small else indices)
        return result  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (held,) = ctx.saved_tensors
        window: Window = ctx.window
        if not ctx.small:
            return _max_pool_gradient(grad, held, ctx.shape, window), None, None
        grad_x = grad.new_empty(ctx.shape)
        grad_planes, held_planes, grad_x_planes = (each.flatten(0, 1).unsqueeze(1) for each in (grad, held, grad_x))
        for some in ranges(held_planes.shape):
            indices = indices_of(held_planes[some], ctx.shape[-1], window)
            grad_x_planes[some] = _max_pool_gradient(grad_planes[some], indices, grad_x_planes[some].shape, window)
        return grad_x, None, None


def _max_pool_gradient(grad: Tensor, indices: Tensor, shape: torch.Size, window: Window) -> Tensor:
    input_shape_alone = grad.new_empty(1).expand(shape)  # its values are not read
    return aten.max_pool2d_with_indices_backward(  # type: ignore[no-any-return]
        grad, input_shape_alone, window.kernel, window.stride, window.padding, window.dilation, window.ceil_mode, indices
    )


def ranges(shape: torch.Size) -> Iterator[slice]:
    """Ranges of the first axis with about `RANGE_WINDOWS` windows each."""
    step = max(1, RANGE_WINDOWS // max(1, prod(shape[1:])))
    yield from (slice(start, start + step) for start in range(0, shape[0], step))


def _starts(windows: int, axis: int, window: Window, device: torch.device) -> Tensor:
    """Where each window of an axis begins, int64."""
    return torch.arange(windows, device=device) * window.stride[axis] - window.padding[axis]


def places(indices: Tensor, width: int, window: Window) -> Tensor:
    """The place of each maximum inside its window, row by row, one byte each, from its index in the input's plane (B, C, H, W)."""
    held = torch.empty(indices.shape, dtype=torch.uint8, device=indices.device)
    planes, held_planes = indices.flatten(0, 1), held.flatten(0, 1)
    top = _starts(indices.shape[-2], 0, window, indices.device)[:, None]
    left = _starts(indices.shape[-1], 1, window, indices.device)
    for which in ranges(planes.shape):
        some = planes[which]
        rows = some.div(width, rounding_mode="floor")
        columns = (some - rows * width).sub_(left).div_(window.dilation[1], rounding_mode="floor")
        rows.sub_(top).div_(window.dilation[0], rounding_mode="floor")
        held_planes[which] = rows.mul_(window.kernel[1]).add_(columns)
    return held


def indices_of(held: Tensor, width: int, window: Window) -> Tensor:
    """The index in the input's plane of each maximum, int64."""
    place = held.long()
    rows = place.div(window.kernel[1], rounding_mode="floor")
    columns = place.sub_(rows * window.kernel[1]).mul_(window.dilation[1]).add_(_starts(held.shape[-1], 1, window, held.device))
    rows.mul_(window.dilation[0]).add_(_starts(held.shape[-2], 0, window, held.device)[:, None])
    return rows.mul_(width).add_(columns)


def max_pool(
    x: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    ceil_mode: bool,
    small: bool = False,
) -> Tensor:
    """Max pooling of `x` (B, C, H, W). `small`: it holds one byte a window, else an int64; its input in neither case."""
    window = Window(kernel, stride, padding, dilation, ceil_mode)
    return _MaxPool.apply(x, window, small)  # type: ignore[no-any-return,no-untyped-call]


class _AveragePool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, settings: tuple[Any, ...]) -> Tensor:
        ctx.settings, ctx.shape = settings, x.shape
        return aten.avg_pool2d(x, *settings)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input_shape_alone = grad.new_empty(1).expand(ctx.shape)  # its values are not read
        return aten.avg_pool2d_backward(grad, input_shape_alone, *ctx.settings), None


def average_pool(
    x: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    """Average pooling of `x` (B, C, H, W) that holds nothing."""
    settings = (kernel, stride or kernel, padding, ceil_mode, count_include_pad, divisor_override)
    return _AveragePool.apply(x, settings)  # type: ignore[no-any-return,no-untyped-call]


class _AdaptiveAveragePool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, size: list[int]) -> Tensor:
        ctx.shape = x.shape
        return aten._adaptive_avg_pool2d(x, size)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input_shape_alone = grad.new_empty(1).expand(ctx.shape)  # its values are not read
        return aten._adaptive_avg_pool2d_backward(grad, input_shape_alone), None


def adaptive_average_pool(x: Tensor, size: list[int]) -> Tensor:
    """Average pooling of `x` (B, C, H, W) to planes of that size, that holds nothing."""
    return _AdaptiveAveragePool.apply(x, size)  # type: ignore[no-any-return,no-untyped-call]
