"""Depthwise convolutions in C, and gradients of frozen batch norms, against float64 autograd."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from memfit import native
from memfit.depthwise import MOST_KERNEL, depthwise
from memfit.operators import held
from memfit.operators.conv import ConvArguments, convolution
from memfit.operators.norm import frozen_batch_norm
from tests.memfit.test_operators import forms, hold, random, relative_error, restored

pytestmark = pytest.mark.skipif(native.library() is None, reason="memfit was installed without a compiler")
F = torch.nn.functional
CLOSE = 1e-5


@pytest.fixture(autouse=True, scope="module", params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """As many pieces as threads, however small they are, and few samples restored at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "LEAST_PIECE", 1)
        patch.setattr(native, "threads", lambda: request.param)
        patch.setattr(held, "RESTORE_BYTES", 300)
        yield


def single(*tensors: Tensor) -> list[Tensor]:
    """The same values in float32, each with a gradient of its own."""
    return [tensor.detach().float().requires_grad_() for tensor in tensors]


@given(data=st.data(), samples=st.integers(1, 3), channels=st.integers(2, 5), bias=st.booleans(), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=100)
def test_a_depthwise_convolution_and_its_gradients(data: st.DataObject, samples: int, channels: int, bias: bool, seed: int) -> None:
    kernel = data.draw(st.sampled_from([(3, 3), (5, 5)]) | st.tuples(st.integers(1, MOST_KERNEL), st.integers(1, MOST_KERNEL)))
    stride = [data.draw(st.integers(1, 3)) for _ in kernel]
    padding = [data.draw(st.integers(0, k - 1)) for k in kernel]
    shape = (samples, channels, *(data.draw(st.integers(max(1, k - 2 * p), 20)) for k, p in zip(kernel, padding, strict=True)))
    x, weight, bias_C = random(shape, seed), random((channels, 1, *kernel), seed + 1), random((channels,), seed + 2) if bias else None
    form = data.draw(forms(shape))
    grad = random(tuple(F.conv2d(x, weight, None, stride, padding, groups=channels).shape), seed + 3)

    tensors = [x, weight] if bias_C is None else [x, weight, bias_C]
    ours = single(*tensors)
    arguments = ConvArguments(stride, padding, [1, 1], channels)
    assert depthwise(ours[0].shape, ours[1].shape, stride, padding, [1, 1], channels) is not None
    result = convolution(ours[0], ours[1], ours[2] if bias else None, arguments, hold(form, ours[0]))
    our_gradients = torch.autograd.grad(result, ours, grad.float())

    truth = [tensor.requires_grad_() for tensor in tensors]
    expected = F.conv2d(x, weight, bias_C, stride, padding, groups=channels)
    gradients = list(torch.autograd.grad(expected, truth, grad))
    of_restored = F.conv2d(restored(form, ours[0].detach()).double(), weight, None, stride, padding, groups=channels)
    gradients[1] = torch.autograd.grad(of_restored, weight, grad)[0]
    assert relative_error(result.double(), expected) <= CLOSE
    for one, other in zip(our_gradients, gradients, strict=True):
        assert one.shape == other.shape
        assert float((one.double() - other).norm()) <= CLOSE * (float(other.norm()) + float(grad.norm()))


def test_what_is_not_done_in_c_is_left_to_torch() -> None:
    shape, weight = torch.Size((2, 4, 6, 6)), torch.Size((4, 1, 3, 3))
    assert depthwise(shape, weight, [1, 1], [1, 1], [1, 1], 4) is not None
    assert depthwise(shape, weight, [1, 1], [1, 1], [2, 2], 4) is None
    assert depthwise(shape, weight, [1, 1], [3, 3], [1, 1], 4) is None
    assert depthwise(shape, torch.Size((8, 1, 3, 3)), [1, 1], [1, 1], [1, 1], 4) is None
    assert depthwise(shape, torch.Size((4, 2, 3, 3)), [1, 1], [1, 1], [1, 1], 2) is None
    assert depthwise(shape, torch.Size((4, 1, 8, 3)), [1, 1], [1, 1], [1, 1], 4) is None
    x, kernels = torch.randn(shape).to(memory_format=torch.channels_last), torch.randn(weight)
    arguments = ConvArguments([1, 1], [1, 1], [1, 1], 4)
    torch.testing.assert_close(convolution(x, kernels, None, arguments), F.conv2d(x, kernels, padding=1, groups=4))


@given(
    data=st.data(),
    spatial=st.lists(st.integers(1, 40), max_size=2),
    weight_trains=st.booleans(),
    over_gradient=st.booleans(),
    seed=st.integers(0, 9),
)
@settings(deadline=None, max_examples=100)
def test_gradients_of_a_frozen_norm(data: st.DataObject, spatial: list[int], weight_trains: bool, over_gradient: bool, seed: int) -> None:
    shape = (data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5)), *spatial)
    form = data.draw(forms(shape))
    x, grad = random(shape, seed), random(shape, seed + 1)
    weight, bias, mean = (random(shape[1:2], seed + n) for n in (2, 3, 4))
    variance = random(shape[1:2], seed + 5).square() + 0.1

    ours = single(x, weight, bias)
    ours[1].requires_grad_(weight_trains)
    result = frozen_batch_norm(*ours, mean.float(), variance.float(), 1e-5, hold(form, ours[0]), over_gradient=over_gradient)
    our_x, our_bias, *our_weight = torch.autograd.grad(result, [ours[0], ours[2], *ours[1:2][: int(weight_trains)]], grad.float())

    truth = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    expected = F.batch_norm(x, mean, variance, weight, bias, False, 0.0, 1e-5)
    x_grad, bias_grad = torch.autograd.grad(expected, [truth[0], truth[2]], grad)
    of_restored = F.batch_norm(restored(form, ours[0].detach()).double(), mean, variance, weight, bias, False, 0.0, 1e-5)
    (weight_grad,) = torch.autograd.grad(of_restored, weight, grad)
    size = CLOSE * float(grad.norm())
    assert relative_error(our_x.double(), x_grad) <= CLOSE
    assert float((our_bias.double() - bias_grad).norm()) <= size
    for each in our_weight:
        assert float((each.double() - weight_grad).norm()) <= size * (1 + float(weight_grad.abs().max()))
