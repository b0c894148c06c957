"""A convolution and the frozen batch norm that alone reads its result, y = γ · (W ∗ x + b − μ) / σ + β, with one backward for both.

The gradient of γ needs W ∗ x, the largest tensors of many networks, only in Σ dy · (W ∗ x) = ⟨W, Σ dy x⟩, a channel each, which is the
convolution's weight gradient but for the norm's scale. So with x nothing more is held, and the norm's pass over the gradient goes too:
the weight takes its scale. In the graph they stay two operations, of which the norm hands the gradient on as it comes.

Folding a batch norm into the convolution before it is known for inference (Jacob et al. 2018, section 3.2).
"""

from typing import Any

import torch
from torch import Tensor

from memfit.forms import Held
from memfit.operators.conv import ConvArguments, convolve, held_weight_gradient, input_gradient
from memfit.operators.held import HeldTensor, Restorable, unpacked
from memfit.operators.norm import channel_sums, normalise
from memfit.process_memory import make_room


class _BeforeNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        norm_weight: Tensor,
        norm_bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        eps: float,
        arguments: ConvArguments,
        form: Restorable | None,
        *held: Tensor,
    ) -> Tensor:
        ctx.arguments, ctx.form, ctx.shape, ctx.eps = arguments, form, x.shape, eps
        ctx.by_weights = ctx.needs_input_grad[1] or ctx.needs_input_grad[3]
        kept: Held = () if not ctx.by_weights else held if form is not None else (x,)
        ctx.save_for_backward(weight, bias, norm_weight, mean, variance, *kept)
        return convolve(x, weight, bias, arguments)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, bias, norm_weight, mean, variance, *kept = ctx.saved_tensors
        input_grad, weight_grad, bias_grad, norm_grad, norm_bias_grad = ctx.needs_input_grad[:5]
        make_room(2 * grad.element_size() * ctx.shape.numel() + grad.nbytes + weight.nbytes)
        inverse_C = (variance + ctx.eps).rsqrt()
        scale_C = inverse_C * norm_weight
        scale = scale_C.view(-1, *[1] * (weight.dim() - 1))
        grad_x = grad_bias = grad_norm = grad_norm_bias = None
        if input_grad:
            grad_x = input_gradient(grad, weight * scale, ctx.shape, ctx.arguments)
        if bias_grad or norm_grad or norm_bias_grad:
            sums_C = channel_sums(grad)
            grad_bias = (sums_C * scale_C).to(grad.dtype) if bias_grad else None
            grad_norm_bias = sums_C.to(grad.dtype) if norm_bias_grad else None
        by_input = None
        if ctx.by_weights:
            by_input = held_weight_gradient(grad, ctx.form, tuple(kept), ctx.shape, weight.shape, ctx.arguments)
            if norm_grad:
                dots_C = torch.einsum("ck,ck->c", weight.flatten(1), by_input.flatten(1))
                shift_C = -mean if bias is None else bias - mean
                grad_norm = ((dots_C + shift_C * sums_C) * inverse_C).to(grad.dtype)
            by_input = by_input.mul_(scale) if weight_grad else None
        none = (None for _ in ctx.needs_input_grad[5:])
        return (grad_x, by_input, grad_bias, grad_norm, grad_norm_bias, *none)


class _AfterConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, over_input: bool, *norm: Any) -> Tensor:
        if over_input:
            ctx.mark_dirty(x)
        return normalise(x, *norm, over_input=over_input)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (grad, *(None for _ in ctx.needs_input_grad[1:]))


def convolution_before_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    eps: float,
    arguments: ConvArguments,
    held: HeldTensor | None = None,
) -> Tensor:
    """Convolve `x` (B, C, *spatial) with `weight` (O, C / groups, *kernel), for `norm_after_convolution` alone: the gradient that comes
    is taken for that of the norm's result, and gradients of the norm's parameters (O,) come from here.

    Args:
        mean, variance, eps: the norm's; shapes (O,).
        held: the input in the form that the weight gradients are to use, from `Hold`; None: whole.
    """
    norm = (norm_weight, norm_bias, mean, variance, eps)
    return _BeforeNorm.apply(x, weight, bias, *norm, arguments, *unpacked(held))  # type: ignore[no-any-return,no-untyped-call]


def norm_after_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    eps: float,
    over_input: bool = False,
) -> Tensor:
    """Batch norm of the result of `convolution_before_norm`, by running statistics.

    Args:
        over_input: its result is written over `x`.
    """
    return _AfterConvolution.apply(x, over_input, weight, bias, mean, variance, eps)  # type: ignore[no-any-return,no-untyped-call]
