"""Depthwise convolution of two axes and its gradients in C, for float32 on a CPU, where installing memfit found a compiler.

Torch lays such tensors out anew before and after each of them, which takes several times as long as the products. `memfit.operators.conv`
uses these where they take the shapes; torch's own stay the reference, and do the work everywhere else.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from memfit import native
from memfit.threads import by_pieces, threads

MOST_KERNEL = 7  # MEMFIT_KERNEL of depthwise.c


class _Shape(ctypes.Structure):
    """`Shape` of depthwise.c."""

    _fields_ = tuple(
        (f"{name}_{axis}" if axis else name, ctypes.c_int64)
        for name, axis in (
            ("channels", ""),
            *((name, axis) for name in ("input", "output", "kernel", "stride", "padding") for axis in ("height", "width")),
        )
    )


@dataclass(frozen=True, slots=True)
class Depthwise:
    """A convolution of (B, C, H, W) with a kernel a channel.

    Attributes:
        shape: of the input.
        kernel, stride, padding: along both axes.
    """

    shape: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]

    @property
    def result(self) -> tuple[int, ...]:
        """The shape of what it gives."""
        sizes = zip(self.shape[2:], self.kernel, self.stride, self.padding, strict=True)
        return (*self.shape[:2], *((size + 2 * p - k) // s + 1 for size, k, s, p in sizes))

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        result = x.new_empty(self.result)

        def work(start: int, stop: int, scratch: int) -> None:
            arrays = (x.data_ptr(), weight.data_ptr(), None if bias is None else bias.data_ptr())
            _library().memfit_depthwise(self._sizes(), *arrays, start, stop, result.data_ptr(), scratch)

        self._by_threads(self.shape[0] * self.shape[1], work)
        return result

    def input_gradient(self, grad: Tensor, weight: Tensor) -> Tensor:
        if self.stride == (1, 1):
            padding = tuple(k - 1 - p for k, p in zip(self.kernel, self.padding, strict=True))
            return Depthwise(tuple(grad.shape), self.kernel, (1, 1), padding).convolve(grad, weight.flip(2, 3), None)
        grad_x = grad.new_empty(self.shape)

        def work(start: int, stop: int, scratch: int) -> None:
            _library().memfit_depthwise_input(self._sizes(), grad.data_ptr(), weight.data_ptr(), start, stop, grad_x.data_ptr(), scratch)

        self._by_threads(self.shape[0] * self.shape[1], work)
        return grad_x

    def weight_gradient(self, grad: Tensor, x: Tensor) -> Tensor:
        sums = grad.new_zeros(self.shape[1], 1, *self.kernel, dtype=torch.float64)

        def work(start: int, stop: int, scratch: int) -> None:
            arrays = (grad.data_ptr(), x.data_ptr(), self.shape[0])
            _library().memfit_depthwise_weight(self._sizes(), *arrays, start, stop, sums.data_ptr(), scratch)

        self._by_threads(self.shape[1], work)
        return sums.to(grad.dtype)

    def _sizes(self) -> "ctypes._CArgObject":
        axes = (self.shape[2:], self.result[2:], self.kernel, self.stride, self.padding)
        return ctypes.byref(_Shape(self.shape[1], *(size for each in axes for size in each)))

    def _by_threads(self, count: int, work: Callable[[int, int, int], None]) -> None:
        floats = _library().memfit_depthwise_floats(self._sizes())
        scratch = torch.empty(threads(), -(-floats // 16) * 16)
        by_pieces(count, prod(self.shape), lambda start, stop, piece: work(start, stop, scratch[piece].data_ptr()))


def _library() -> ctypes.CDLL:
    native_library = native.library()
    assert native_library is not None
    return native_library


def depthwise(
    shape: torch.Size, weight_shape: torch.Size, stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> Depthwise | None:
    """What of a convolution with groups is done here; None where it is another one, or there is no C."""
    if native.library() is None or len(shape) != 4 or not groups == weight_shape[0] == shape[1]:
        return None
    kernel = tuple(weight_shape[2:])
    if any(d != 1 for d in dilation) or any(k > MOST_KERNEL or p >= k for k, p in zip(kernel, padding, strict=True)):
        return None
    return Depthwise(tuple(shape), kernel, tuple(stride), tuple(padding))
