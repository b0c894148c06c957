"""Pooling against torch's own, in float64: values, gradients, and bytes held."""

import dataclasses
from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from memfit.operators import pooling
from memfit.operators.pooling import Window, adaptive_average_pool, average_pool, max_pool
from planner.capture import capture_module

F = torch.nn.functional
sides = st.integers(1, 3)


MAX_POOLS, AVERAGE_POOLS = (F.max_pool1d, F.max_pool2d, F.max_pool3d), (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
ADAPTIVE = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
SIZES = (7, 9, 8)  # of the spatial axes, as many as there are


@st.composite
def windows(draw: st.DrawFn) -> Window:
    kernel = tuple(draw(st.lists(sides, min_size=1, max_size=3)))
    padding = tuple(draw(st.integers(0, size // 2)) for size in kernel)
    return Window(kernel, tuple(draw(sides) for _ in kernel), padding, tuple(draw(sides) for _ in kernel), draw(st.booleans()))


@st.composite
def windows_and_sizes(draw: st.DrawFn) -> tuple[Window, list[int]]:
    """Inputs as small as windows fit, padding included, and larger ones."""
    window = draw(windows())
    extents = [d * (k - 1) + 1 for k, d in zip(window.kernel, window.dilation, strict=True)]
    least = [max(1, extent - 2 * padding) for extent, padding in zip(extents, window.padding, strict=True)]
    return window, [size + draw(st.integers(0, 6)) for size in least]


@given(sized=windows_and_sizes(), batch=st.integers(1, 3), small=st.booleans(), seed=st.integers(0, 99), rounded=st.booleans())
@settings(deadline=None, max_examples=150)
def test_max_pooling_is_torchs(sized: tuple[Window, list[int]], batch: int, small: bool, seed: int, rounded: bool) -> None:
    torch.manual_seed(seed)
    window, sizes = sized
    axes = len(window.kernel)
    x = torch.randn(batch, 2, *sizes, dtype=torch.float64)
    x = x.round() if rounded else x  # with ties
    ours, truth = x.clone().requires_grad_(), x.clone().requires_grad_()
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = max_pool(ours, *dataclasses.astuple(window), small)
    plain = MAX_POOLS[axes - 1](truth, window.kernel, window.stride, window.padding, window.dilation, window.ceil_mode)
    assert torch.equal(result, plain)
    assert sum(tensor.untyped_storage().nbytes() for tensor in kept) == result.numel() * (1 if small else 8)
    grad = torch.randn_like(result)
    result.backward(grad)
    plain.backward(grad)
    torch.testing.assert_close(ours.grad, truth.grad, rtol=1e-12, atol=1e-12)  # sums where windows meet, in any order


def test_indices_come_back_by_ranges(monkeypatch) -> None:
    monkeypatch.setattr(pooling, "RANGE_WINDOWS", 1)
    window = Window((3, 3), (2, 2), (1, 1), (1, 1), False)
    x = torch.randn(5, 3, 16, 16, requires_grad=True)
    (grad,) = torch.autograd.grad(max_pool(x, *dataclasses.astuple(window), True).square().sum(), x)
    (truth,) = torch.autograd.grad(F.max_pool2d(x, 3, 2, 1).square().sum(), x)
    torch.testing.assert_close(grad, truth)


@given(axes=st.integers(1, 3), kernel=sides, stride=st.integers(0, 3), ceil=st.booleans(), count=st.booleans(), divisor=st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_average_pooling_is_torchs_and_holds_nothing(axes: int, kernel: int, stride: int, ceil: bool, count: bool, divisor: int) -> None:
    x = torch.randn(2, 3, *SIZES[:axes], dtype=torch.float64, requires_grad=True)
    kept: list[Tensor] = []
    further = [divisor or None] if axes > 1 else []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        result = average_pool(x, [kernel] * axes, [stride] * axes if stride else [], [kernel // 2] * axes, ceil, count, *further)
    assert not kept
    plain = AVERAGE_POOLS[axes - 1](x, kernel, stride or None, kernel // 2, ceil, count, *further)
    assert torch.equal(result, plain)
    grad = torch.randn_like(result)
    for ours, truth in zip(torch.autograd.grad(result, x, grad), torch.autograd.grad(plain, x, grad), strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-12, atol=1e-12)


@given(size=st.lists(st.integers(1, 7), min_size=1, max_size=3), batch=st.integers(1, 3), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_adaptive_average_pooling_is_torchs_and_holds_nothing(size: list[int], batch: int, seed: int) -> None:
    torch.manual_seed(seed)
    ours = torch.randn(batch, 2, *SIZES[: len(size)], dtype=torch.float64, requires_grad=True)
    truth = ours.detach().clone().requires_grad_()
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = adaptive_average_pool(ours, size)
    assert not kept
    plain = ADAPTIVE[len(size) - 1](truth, tuple(size))
    torch.testing.assert_close(result, plain)
    grad = torch.randn_like(result)
    result.backward(grad)
    plain.backward(grad)
    assert ours.grad is not None and truth.grad is not None
    assert float((ours.grad - truth.grad).norm() / truth.grad.norm()) <= 1e-10


class Pooled(nn.Module):
    """Poolings over one and three axes, and upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.line, self.head = nn.Conv3d(2, 4, 3, padding=1), nn.Conv1d(4, 4, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool3d(F.max_pool3d(self.stem(x), 2, ceil_mode=True), 1)
        x = F.interpolate(F.adaptive_avg_pool3d(x, (2, 2, 3)), scale_factor=2.0)
        y = F.avg_pool1d(F.max_pool1d(self.line(x.flatten(2)), 3, 2, 1), 2)
        result: Tensor = self.head(F.adaptive_avg_pool1d(y, 3).sum(2))
        return result


def test_a_network_of_poolings_keeps_what_its_layers_need_and_a_byte_a_window() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 2, 5, 6, 7, dtype=torch.float64)
    graph = capture_module(Pooled().double().train(), (x,))
    model = graph.rewritten(replace(graph.exact_recipe("mse"), masks=("max_pool3d", "max_pool1d")))
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = model(x)
    static = {each.untyped_storage().data_ptr() for each in (x, *model.parameters())}
    windows, line, head = 3 * 4 * (3 * 3 * 4 + 48), 3 * 4 * 96 * 8, 3 * 4 * 8  # bytes: of places, and of what conv1d and linear read
    assert sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in static) == windows + line + head
    ours = torch.autograd.grad(result.square().sum(), list(model.parameters()))
    truth = torch.autograd.grad(graph.module(x).square().sum(), list(graph.module.parameters()))
    for one, other in zip(ours, truth, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
