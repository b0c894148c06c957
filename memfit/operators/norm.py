"""Batch norm with frozen statistics: y = weight · (x − mean) / √(variance + ε) + bias, an affine map a channel.

Only the gradient of `weight` needs the input; with `weight` frozen nothing is held, and held in a form the gradients of all
else stay exact.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from memfit import native
from memfit.forms import Held
from memfit.operators.held import HeldTensor, Restorable, restored_ranges, unpacked
from memfit.process_memory import make_room


class _FrozenBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        eps: float,
        over_input: bool,
        over_gradient: bool,
        form: Restorable | None,
        *held: Tensor,
    ) -> Tensor:
        kept: Held = () if not ctx.needs_input_grad[1] else held if form is not None else (x,)
        ctx.eps, ctx.form, ctx.shape, ctx.itemsize, ctx.over_gradient = eps, form, x.shape, x.element_size(), over_gradient
        ctx.save_for_backward(weight, mean, variance, *kept)
        if over_input:
            ctx.mark_dirty(x)
        return normalise(x, weight, bias, mean, variance, eps, over_input=over_input)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, mean, variance, *kept = ctx.saved_tensors
        make_room(2 * grad.nbytes)
        input_grad, weight_grad, bias_grad = ctx.needs_input_grad[:3]
        over_gradient = input_grad and ctx.over_gradient
        inverse_C = (variance + ctx.eps).rsqrt()
        scale_C = inverse_C if weight is None else inverse_C * weight
        grad_x = grad_weight = grad_bias = None
        ranges: Iterable[tuple[slice, Tensor | None]] = [(slice(None), kept[0] if weight_grad and ctx.form is None else None)]
        if weight_grad and ctx.form is not None:
            ranges = restored_ranges(ctx.form, tuple(kept), ctx.shape, ctx.itemsize)
        in_c = (weight_grad or bias_grad) and all(map(native.takes, (grad, mean, *(kept if ctx.form is None else ()))))
        if in_c:
            sums_C, dots_C = grad.new_zeros(2, len(mean), dtype=torch.float64)
            for samples, x in ranges:
                x = None if x is None else x.contiguous()
                native.affine_gradients(grad[samples], x, mean, scale_C if over_gradient else None, sums_C, dots_C)
            grad_bias = sums_C.to(grad.dtype) if bias_grad else None
            grad_weight = dots_C.to(grad.dtype).mul_(inverse_C) if weight_grad else None
        else:
            for samples, x in ranges:
                if x is not None:
                    part = weight_gradient(grad[samples], x, mean, variance, ctx.eps)
                    grad_weight = part if grad_weight is None else grad_weight.add_(part)
            if bias_grad:
                grad_bias = channel_sums(grad).to(grad.dtype)
        if input_grad:
            scale = scale_C.view(-1, *[1] * (grad.dim() - 2))
            grad_x = grad if in_c and over_gradient else grad.mul_(scale) if over_gradient else grad * scale
        return (grad_x, grad_weight, grad_bias, *(None for _ in ctx.needs_input_grad[3:]))


def normalise(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, eps: float, *, over_input: bool
) -> Tensor:
    """The norm, without autograd."""
    if not over_input:
        make_room(x.nbytes)
        return torch.nn.functional.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)
    make_room(0)
    statistics = {"save_mean": mean.new_empty(0), "save_invstd": mean.new_empty(0)}
    torch.ops.aten.native_batch_norm.out(x, weight, bias, mean, variance, False, 0.0, eps, out=x, **statistics)
    return x


def channel_sums(grad: Tensor) -> Tensor:
    """Σ of each channel of (B, C, ...): (C,)."""
    if not native.takes(grad):
        return grad.sum([axis for axis in range(grad.dim()) if axis != 1])
    sums_C: Tensor
    sums_C, dots_C = grad.new_zeros(2, grad.shape[1], dtype=torch.float64)
    native.affine_gradients(grad, None, sums_C, None, sums_C, dots_C)
    return sums_C


def weight_gradient(grad: Tensor, x: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
    """Gradient of the weight (C,) from the output's gradient and the input, both (B, C, ...)."""
    backward = torch.ops.aten.native_batch_norm_backward
    weight = torch.ones_like(mean)  # the kernel asks for one, and this gradient does not depend on it
    return backward(grad, x, weight, mean, variance, None, None, False, eps, [False, True, False])[1]  # type: ignore[no-any-return]


def frozen_batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    eps: float,
    held: HeldTensor | None = None,
    over_input: bool = False,
    over_gradient: bool = False,
) -> Tensor:
    """Batch norm of `x` (B, C, ...) by running statistics (C,); `held` as for `convolution`.

    Args:
        over_input: its result is written over `x`, which then cannot be held whole.
        over_gradient: in backward, the gradient of `x` is written over that of the result, which nobody else may have.

    Raises:
        ValueError: it would hold what it overwrites.
    """
    if over_input and held is None and weight is not None and weight.requires_grad and torch.is_grad_enabled():
        raise ValueError("a batch norm cannot hold whole what it writes its result over")
    settings = (eps, over_input, over_gradient)
    return _FrozenBatchNorm.apply(x, weight, bias, mean, variance, *settings, *unpacked(held))  # type: ignore[no-any-return,no-untyped-call]


class BatchNorm(torch.nn.Module):
    """Batch norm by batch statistics in training, by running ones in evaluation; parameters and buffers come as arguments."""

    def __init__(self, momentum: float, eps: float) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps

    def forward(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor | None,
        variance: Tensor | None,
        counter: Tensor | None = None,
    ) -> Tensor:
        if self.training and counter is not None:
            counter.add_(1)
        batch_statistics = self.training or mean is None
        return torch.nn.functional.batch_norm(x, mean, variance, weight, bias, batch_statistics, self.momentum, self.eps)
