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

from memfit.process_memory import make_room

aten = torch.ops.aten
RANGE_WINDOWS = 1 << 15  # windows whose indices are worked out at a time; one plane's if that is more


@dataclass(frozen=True, slots=True)
class Window:
    """Of a pooling over one to three axes: a number for each."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    ceil_mode: bool


# A pooling over one axis is one over two, of which the first has size 1: torch's own does that too.
def _planes(x: Tensor) -> Tensor:
    return x.unsqueeze(2) if x.dim() == 3 else x


def _two_axes(window: Window) -> Window:
    if len(window.kernel) > 1:
        return window
    return Window((1, *window.kernel), (1, *window.stride), (0, *window.padding), (1, *window.dilation), window.ceil_mode)


class _MaxPool(torch.autograd.Function):
    """Of (B, C, H, W) or (B, C, D, H, W)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, window: Window, small: bool) -> Tensor:
        make_room(x.nbytes)
        pool = aten.max_pool2d_with_indices if x.dim() == 4 else aten.max_pool3d_with_indices
        result, indices = pool(x, window.kernel, window.stride, window.padding, window.dilation, window.ceil_mode)
        ctx.window, ctx.shape, ctx.small = window, x.shape, small
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(places(indices, tuple(x.shape[2:]), window) if small else indices)
        return result  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (held,) = ctx.saved_tensors
        make_room(grad.element_size() * prod(ctx.shape))
        window: Window = ctx.window
        if not ctx.small:
            return _max_pool_gradient(grad, held, ctx.shape, window), None, None
        grad_x = grad.new_empty(ctx.shape)
        grad_planes, held_planes, grad_x_planes = (each.flatten(0, 1).unsqueeze(1) for each in (grad, held, grad_x))
        for some in ranges(held_planes.shape):
            indices = indices_of(held_planes[some], tuple(ctx.shape[2:]), window)
            grad_x_planes[some] = _max_pool_gradient(grad_planes[some], indices, grad_x_planes[some].shape, window)
        return grad_x, None, None


def _max_pool_gradient(grad: Tensor, indices: Tensor, shape: torch.Size, window: Window) -> Tensor:
    input_shape_alone = grad.new_empty(1).expand(shape)  # its values are not read
    backward = aten.max_pool2d_with_indices_backward if grad.dim() == 4 else aten.max_pool3d_with_indices_backward
    settings = (window.kernel, window.stride, window.padding, window.dilation, window.ceil_mode)
    return backward(grad, input_shape_alone, *settings, indices)  # type: ignore[no-any-return]


def ranges(shape: torch.Size) -> Iterator[slice]:
    """Ranges of the first axis with about `RANGE_WINDOWS` windows each."""
    step = max(1, RANGE_WINDOWS // max(1, prod(shape[1:])))
    yield from (slice(start, start + step) for start in range(0, shape[0], step))


def _numbers(
    counts: tuple[int, ...], steps: tuple[int, ...], start: tuple[int, ...], sizes: tuple[int, ...], device: torch.device
) -> Tensor:
    """The index, row by row among places of `sizes`, of places `steps` apart from `start` on; int64, of shape `counts`. Outside of `sizes`
    it goes on counting.
    """
    numbers = torch.zeros(counts, dtype=torch.int64, device=device)
    for axis, count in enumerate(counts):
        along = torch.arange(count, device=device).mul_(steps[axis]).add_(start[axis])
        numbers.add_(along.mul_(prod(sizes[axis + 1 :])).view(-1, *[1] * (len(counts) - 1 - axis)))
    return numbers


def _first(windows: tuple[int, ...], sizes: tuple[int, ...], window: Window, device: torch.device) -> Tensor:
    """The index at which each window begins."""
    return _numbers(windows, window.stride, tuple(-padding for padding in window.padding), sizes, device)


def _beyond(sizes: tuple[int, ...], window: Window, device: torch.device) -> Tensor:
    """By how much the index of each place of a window is beyond the first; shape (places,)."""
    return _numbers(window.kernel, window.dilation, (0,) * len(sizes), sizes, device).flatten()


def places(indices: Tensor, sizes: tuple[int, ...], window: Window) -> Tensor:
    """The place of each maximum inside its window, row by row, one byte each.

    A table tells it from how far the index is beyond the first of its window: divisions take ten times as long.

    Args:
        indices: of each maximum among the input's places of its sample and channel, row by row; shape (B, C, *windows).
        sizes: of the input's spatial axes.
    """
    device = indices.device
    held = torch.empty(indices.shape, dtype=torch.uint8, device=device)
    planes, held_planes = indices.flatten(0, 1), held.flatten(0, 1)
    # Where a window is wider than the input, two of its places could be as far beyond the first: not among as many places as it has.
    wide = tuple(max(size, d * (k - 1) + 1) for size, k, d in zip(sizes, window.kernel, window.dilation, strict=True))
    among_wide = _numbers(sizes, (1,) * len(sizes), (0,) * len(sizes), wide, device).flatten() if wide != sizes else None
    first, beyond = _first(tuple(indices.shape[2:]), wide, window, device), _beyond(wide, window, device)
    place_of = torch.zeros(int(beyond.max()) + 1, dtype=torch.uint8, device=device)
    place_of[beyond] = torch.arange(len(beyond), dtype=torch.uint8, device=device)
    for some in ranges(planes.shape):
        numbers = planes[some] if among_wide is None else among_wide.index_select(0, planes[some].flatten()).view_as(planes[some])
        held_planes[some] = place_of.index_select(0, numbers.sub(first).flatten()).view_as(held_planes[some])
    return held


def indices_of(held: Tensor, sizes: tuple[int, ...], window: Window) -> Tensor:
    """The index that `places` took each place from, int64."""
    indices = _beyond(sizes, window, held.device).index_select(0, held.flatten().int()).view(held.shape)
    return indices.add_(_first(tuple(held.shape[2:]), sizes, window, held.device))


def max_pool(
    x: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    ceil_mode: bool,
    small: bool = False,
) -> Tensor:
    """Max pooling of `x` (B, C, *spatial) over one to three axes. `small`: it holds one byte a window, else an int64; its input in neither
    case.
    """
    window = _two_axes(Window(kernel, stride, padding, dilation, ceil_mode))
    result: Tensor = _MaxPool.apply(_planes(x), window, small)  # type: ignore[no-untyped-call]
    return result.squeeze(2) if x.dim() == 3 else result


class _AveragePool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, settings: tuple[Any, ...]) -> Tensor:
        ctx.settings, ctx.shape = settings, x.shape
        return (aten.avg_pool2d if x.dim() == 4 else aten.avg_pool3d)(x, *settings)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input_shape_alone = grad.new_empty(1).expand(ctx.shape)  # its values are not read
        backward = aten.avg_pool2d_backward if grad.dim() == 4 else aten.avg_pool3d_backward
        return backward(grad, input_shape_alone, *ctx.settings), None


def average_pool(
    x: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None = None,
) -> Tensor:
    """Average pooling of `x` (B, C, *spatial), over one to three axes, that holds nothing."""
    one = x.dim() == 3
    kernel, stride, padding = list(kernel), list(stride or kernel), list(padding)
    sizes = ([1, *kernel], [1, *stride], [0, *padding]) if one else (kernel, stride, padding)
    result: Tensor = _AveragePool.apply(_planes(x), (*sizes, ceil_mode, count_include_pad, divisor_override))  # type: ignore[no-untyped-call]
    return result.squeeze(2) if one else result


class _AdaptiveAveragePool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, size: list[int]) -> Tensor:
        ctx.shape = x.shape
        return (aten._adaptive_avg_pool2d if x.dim() == 4 else aten._adaptive_avg_pool3d)(x, size)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input_shape_alone = grad.new_empty(1).expand(ctx.shape)  # its values are not read
        backward = aten._adaptive_avg_pool2d_backward if grad.dim() == 4 else aten._adaptive_avg_pool3d_backward
        return backward(grad, input_shape_alone), None


def adaptive_average_pool(x: Tensor, size: list[int]) -> Tensor:
    """Average pooling of `x` (B, C, *spatial) to places of that size, over one to three axes, that holds nothing."""
    one = x.dim() == 3
    result: Tensor = _AdaptiveAveragePool.apply(_planes(x), [1, *size] if one else list(size))  # type: ignore[no-untyped-call]
    return result.squeeze(2) if one else result
