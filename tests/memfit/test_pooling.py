"""Pooling against torch's own, in float64: values, gradients, and bytes held."""

import dataclasses

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from memfit.operators import pooling
from memfit.operators.pooling import Window, adaptive_average_pool, average_pool, max_pool

F = torch.nn.functional
sides = st.integers(1, 3)


@st.composite
def windows(draw: st.DrawFn) -> Window:
    kernel = (draw(sides), draw(sides))
    padding = (draw(st.integers(0, kernel[0] // 2)), draw(st.integers(0, kernel[1] // 2)))
    return Window(kernel, (draw(sides), draw(sides)), padding, (draw(sides), draw(sides)), draw(st.booleans()))


@given(window=windows(), batch=st.integers(1, 3), small=st.booleans(), seed=st.integers(0, 99), rounded=st.booleans())
@settings(deadline=None, max_examples=150)
def test_max_pooling_is_torchs(window: Window, batch: int, small: bool, seed: int, rounded: bool) -> None:
    torch.manual_seed(seed)
    x = torch.randn(batch, 2, 9, 11, dtype=torch.float64)
    x = x.round() if rounded else x  # with ties
    ours, truth = x.clone().requires_grad_(), x.clone().requires_grad_()
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = max_pool(ours, *dataclasses.astuple(window), small)
    plain = F.max_pool2d(truth, window.kernel, window.stride, window.padding, window.dilation, window.ceil_mode)
    assert torch.equal(result, plain)
    assert sum(tensor.untyped_storage().nbytes() for tensor in kept) == result.numel() * (1 if small else 8)
    grad = torch.randn_like(result)
    result.backward(grad)
    plain.backward(grad)
    assert torch.equal(ours.grad, truth.grad)


def test_indices_come_back_by_ranges(monkeypatch) -> None:
    monkeypatch.setattr(pooling, "RANGE_WINDOWS", 1)
    window = Window((3, 3), (2, 2), (1, 1), (1, 1), False)
    x = torch.randn(5, 3, 16, 16, requires_grad=True)
    (grad,) = torch.autograd.grad(max_pool(x, *dataclasses.astuple(window), True).square().sum(), x)
    (truth,) = torch.autograd.grad(F.max_pool2d(x, 3, 2, 1).square().sum(), x)
    torch.testing.assert_close(grad, truth)


@given(kernel=sides, stride=st.integers(1, 3), ceil=st.booleans(), count=st.booleans(), divisor=st.one_of(st.none(), st.integers(1, 5)))
@settings(deadline=None, max_examples=60)
def test_average_pooling_is_torchs_and_holds_nothing(kernel: int, stride: int, ceil: bool, count: bool, divisor: int | None) -> None:
    x = torch.randn(2, 3, 8, 9, dtype=torch.float64, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        result = average_pool(x, [kernel, kernel], [stride, stride], [kernel // 2, kernel // 2], ceil, count, divisor)
    assert not kept
    plain = F.avg_pool2d(x, kernel, stride, kernel // 2, ceil, count, divisor)
    assert torch.equal(result, plain)
    grad = torch.randn_like(result)
    for ours, truth in zip(torch.autograd.grad(result, x, grad), torch.autograd.grad(plain, x, grad), strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-12, atol=1e-12)


@given(height=st.integers(1, 7), width=st.integers(1, 7), batch=st.integers(1, 3), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_adaptive_average_pooling_is_torchs_and_holds_nothing(height: int, width: int, batch: int, seed: int) -> None:
    torch.manual_seed(seed)
    ours = torch.randn(batch, 2, 7, 9, dtype=torch.float64, requires_grad=True)
    truth = ours.detach().clone().requires_grad_()
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = adaptive_average_pool(ours, [height, width])
    assert not kept
    plain = F.adaptive_avg_pool2d(truth, (height, width))
    torch.testing.assert_close(result, plain)
    grad = torch.randn_like(result)
    result.backward(grad)
    plain.backward(grad)
    assert ours.grad is not None and truth.grad is not None
    assert float((ours.grad - truth.grad).norm() / truth.grad.norm()) <= 1e-10
