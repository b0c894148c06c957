"""Rectifiers that hold one bit an element or their result, and dropout with its bits, against torch's own."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from memfit import bits, native
from memfit.operators.pointwise import MaskedDropout, Rectifier, rectified
from tests.memfit.test_operators import random, saved_bytes

F = torch.nn.functional
CASES: list[tuple[Rectifier, Callable[[Tensor], Tensor]]] = [
    (Rectifier(0.0), F.relu),
    (Rectifier(0.0, 6.0), F.relu6),
    (Rectifier(-0.5, 0.7), lambda x: F.hardtanh(x, -0.5, 0.7)),
    (Rectifier(0.0, slope=0.1), lambda x: F.leaky_relu(x, 0.1)),
]


@pytest.mark.parametrize(("rectifier", "truth"), CASES)
@pytest.mark.parametrize("shape", [(1,), (7,), (8,), (3, 5, 7), (2, 3, 4, 4)])
@pytest.mark.parametrize("bits", [True, False])
@pytest.mark.parametrize("over_input", [True, False])
@pytest.mark.parametrize("over_gradient", [True, False])
def test_rectifiers(
    rectifier: Rectifier, truth: Callable[[Tensor], Tensor], shape: tuple[int, ...], bits: bool, over_input: bool, over_gradient: bool
) -> None:
    x = (random(shape, 1) * 4).requires_grad_()
    with torch.no_grad():
        x.view(-1)[0] = 0.0  # the edge, where the gradient is torch's choice
    upstream = random(shape, 2)
    before = x * 1
    result = rectified(before, rectifier, bits, over_input, over_gradient)
    assert (result.data_ptr() == before.data_ptr()) == over_input
    assert torch.equal(result, truth(x))
    (true_grad,) = torch.autograd.grad(truth(x), x, upstream)
    (our_grad,) = torch.autograd.grad(result, x, upstream)
    torch.testing.assert_close(our_grad, true_grad, rtol=1e-12, atol=0)
    assert torch.equal(upstream, random(shape, 2)) != over_gradient or torch.equal(upstream, true_grad)


def test_a_rectifier_holds_one_bit_an_element_or_its_result() -> None:
    x = random((3, 5, 7), 0).requires_grad_()
    assert saved_bytes(rectified(x, Rectifier(0.0), bits=True)) == bits.packed_bytes(105) == 14
    result = rectified(x, Rectifier(0.0, 6.0))
    assert [tensor.data_ptr() for tensor in result.grad_fn.saved_tensors] == [result.data_ptr()]  # type: ignore[union-attr]


@given(elements=st.integers(1, 100), piece=st.sampled_from([8, 16, 1 << 20]), seed=st.integers(0, 99))
@settings(deadline=None)
def test_bits_survive_packing_in_pieces_of_any_size(elements: int, piece: int, seed: int) -> None:
    x, grad = random((elements,), seed), random((elements,), seed + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bits, "PIECE", piece)
        packed = bits.pack_between(x, 0.0, float("inf"))
        assert torch.equal(packed, bits.pack(x > 0))
        scaled = bits.scale_by_bits(grad, packed, 2.0, 0.5)
    torch.testing.assert_close(scaled, torch.where(x > 0, grad * 2, grad * 0.5))


@pytest.mark.skipif(native.library() is None, reason="memfit was installed without a compiler")
@pytest.mark.parametrize(("low", "high", "slope"), [(0.0, float("inf"), 0.0), (0.0, 6.0, 0.0), (-0.5, 0.7, 0.0), (0.0, float("inf"), 0.1)])
@pytest.mark.parametrize("in_place", [False, True])
@given(elements=st.integers(0, 100), seed=st.integers(0, 99), threads=st.integers(1, 3))
@settings(deadline=None, max_examples=50)
def test_c_makes_the_same_as_torch(low: float, high: float, slope: float, in_place: bool, elements: int, seed: int, threads: int) -> None:
    x, grad = (random((elements,), seed) * 4).float(), random((elements,), seed + 1).float()
    for at, value in zip(range(0, elements, 9), (float("nan"), float("inf"), -float("inf"), low, high, -0.0), strict=False):
        x[at] = value
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "takes", lambda x: False)
        expected, packed = bits.rectify(x, low, high, slope, False)
        scaled = bits.scale_by_bits(grad, packed, 2.0, slope)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "LEAST_PIECE", 10)  # so that few elements are several pieces
        patch.setattr(native, "threads", lambda: threads)
        result, ours = bits.rectify(x, low, high, slope, in_place)
        assert (result is x) == in_place and torch.equal(ours, packed)
        torch.testing.assert_close(result, expected, rtol=1e-7, atol=0, equal_nan=True)
        assert torch.equal(bits.scale_by_bits(grad, ours, 2.0, slope), scaled)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_a_rectifier_changed_in_place_is_not_used_unchanged(dtype: torch.dtype) -> None:
    x = random((9,), 0).to(dtype).requires_grad_()
    y = x * 1
    product = y * y  # whose gradient needs y as it was
    rectified(y, Rectifier(0.0), bits=True, over_input=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


@pytest.mark.parametrize("probability", [0.0, 0.3, 0.9, 1.0])
def test_dropout_draws_what_torch_draws(probability: float) -> None:
    x, upstream = random((13, 7), 0).requires_grad_(), random((13, 7), 1)
    torch.manual_seed(5)
    truth = F.dropout(x, probability)
    torch.manual_seed(5)
    ours = MaskedDropout(probability)(x)
    torch.testing.assert_close(ours, truth)
    torch.testing.assert_close(torch.autograd.grad(ours, x, upstream)[0], torch.autograd.grad(truth, x, upstream)[0])
    assert torch.equal(MaskedDropout(probability).eval()(x), x)
